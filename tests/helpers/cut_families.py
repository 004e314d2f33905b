"""Tiny models of more families than `tiny.FAMILIES`: the common ones, and each way of cutting a model over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.helpers.tiny import VOCABULARY

_COMMON: dict[str, Any] = dict(
    vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=128,
)  # fmt: skip
_GPT: dict[str, Any] = dict(
    vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, n_embd=32, n_layer=2, n_head=4,
    n_positions=128,
)  # fmt: skip
_LATENT: dict[str, Any] = dict(
    num_key_value_heads=4, n_routed_experts=4, moe_intermediate_size=16, first_k_dense_replace=1, q_lora_rank=16,
    kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_shared_experts=2,
)  # fmt: skip
_GROUPED: dict[str, Any] = _COMMON | dict(num_key_value_heads=2, intermediate_size=64)
_EXPERTS: dict[str, Any] = _GROUPED | dict(num_experts_per_tok=2)

MORE_FAMILIES: dict[str, Callable[[], Any]] = {
    # norms over all query heads
    "olmo2": lambda: hf.Olmo2Config(**_GROUPED),
    "olmo3": lambda: hf.Olmo3Config(**_GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "olmoe": lambda: hf.OlmoeConfig(**_EXPERTS, num_experts=4),
    # fused layers
    "glm4": lambda: hf.Glm4Config(**_GROUPED, head_dim=8),
    "phi3": lambda: hf.Phi3Config(**_GROUPED),
    "falcon": lambda: hf.FalconConfig(**_COMMON),
    "falcon_new": lambda: hf.FalconConfig(**_COMMON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": lambda: hf.FalconConfig(**_COMMON, alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "gpt_bigcode": lambda: hf.GPTBigCodeConfig(**_GPT),
    "gpt_bigcode_heads": lambda: hf.GPTBigCodeConfig(**_GPT, multi_query=False),
    "mpt": lambda: hf.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, expansion_ratio=2
    ),
    "codegen": lambda: hf.CodeGenConfig(**_GPT, rotary_dim=4),
    "persimmon": lambda: hf.PersimmonConfig(**_COMMON, intermediate_size=64),
    # heads of their own number in each module
    "stablelm": lambda: hf.StableLmConfig(**_GROUPED),
    "stablelm_head_norms": lambda: hf.StableLmConfig(**_GROUPED, qk_layernorm=True),
    "gptj": lambda: hf.GPTJConfig(**_GPT, rotary_dim=4),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        **{key: value for key, value in _COMMON.items() if key not in ("num_hidden_layers", "num_attention_heads")},
        num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4,
    ),
    "xglm": lambda: hf.XGLMConfig(
        vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, d_model=32, ffn_dim=64, num_layers=2,
        attention_heads=4, max_position_embeddings=128,
    ),
    "biogpt": lambda: hf.BioGptConfig(**_COMMON, intermediate_size=64),
    # experts
    "mixtral": lambda: hf.MixtralConfig(**_EXPERTS, num_local_experts=4),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **_EXPERTS, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=32, decoder_sparse_step=1
    ),
    "qwen3_moe": lambda: hf.AutoConfig.for_model(
        "qwen3_moe", **_EXPERTS, num_experts=4, moe_intermediate_size=16, head_dim=8, mlp_only_layers=[0]
    ),
    "gpt_oss": lambda: hf.GptOssConfig(**_EXPERTS, num_local_experts=4, head_dim=8, sliding_window=4),
    "aria_text": lambda: hf.AriaTextConfig(**_GROUPED, moe_num_experts=4, moe_topk=2),
    "deepseek_v2": lambda: hf.DeepseekV2Config(**_EXPERTS | _LATENT),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**_EXPERTS | _LATENT, n_group=2, topk_group=1),
    # sinks and layers that differ
    "granite_swa": lambda: hf.AutoConfig.for_model("granite_swa", **_GROUPED, sliding_window=4),
    "gemma4_text": lambda: hf.AutoConfig.for_model(
        "gemma4_text", **_GROUPED, head_dim=8, global_head_dim=16, num_kv_shared_layers=0,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    # a tower for images, whose layers have the names of those of the text, and three heads
    "gemma3": lambda: hf.AutoConfig.for_model(
        "gemma3", text_config={**_GROUPED, "model_type": "gemma3_text", "head_dim": 8}, mm_tokens_per_image=4,
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=24, intermediate_size=31, num_hidden_layers=1,
            num_attention_heads=3, image_size=28, patch_size=14,
        ),
    ),
}  # fmt: skip
