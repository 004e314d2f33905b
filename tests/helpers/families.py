"""Tiny configs of many more families than `tiny.FAMILIES`: experts, windows of 8 tokens, chunks, states."""

from __future__ import annotations

import dataclasses
from typing import Any

import transformers as hf

WINDOW = 8
_COMMON: dict[str, Any] = {
    "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "sliding_window": WINDOW,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GROUPS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_STATES: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

# What a family needs beside `_COMMON`; only fields that its config has are taken from there.
CHANGES: dict[str, dict[str, Any]] = {
    # experts
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4},
    "olmoe": {**_EXPERTS, "num_experts": 4},
    "gpt_oss": {**_EXPERTS, "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "deepseek_v2": {**_EXPERTS, **_LATENT},
    "deepseek_v3": {**_EXPERTS, **_LATENT},
    "glm4_moe": {**_EXPERTS, **_GROUPS},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "phimoe": {**_EXPERTS, "num_local_experts": 4},
    "dots1": {**_EXPERTS, **_GROUPS, "n_shared_experts": 1, **_MIXED},
    "flex_olmo": {**_EXPERTS, "num_experts": 4},
    "minimax_m2": {**_EXPERTS, "num_local_experts": 4},
    "hunyuan_v1_moe": {**_EXPERTS, "num_experts": 4},
    # windows in some layers or in all
    "gemma2": _MIXED,
    "gemma3_text": _MIXED,
    "gemma3": {
        "text_config": {**_COMMON, **_MIXED}, "mm_tokens_per_image": 1, "image_token_index": 319,
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 14, "patch_size": 14,
        },
    },
    "gemma4_text": {**_MIXED, "global_head_dim": 8, "vocab_size_per_layer_input": 320},
    "cohere2": _MIXED,
    "olmo3": _MIXED,
    "exaone4": {**_MIXED, "sliding_window_pattern": "LG"},
    "ministral": _MIXED,
    "ministral3": {},
    "starcoder2": {},
    "phi3": {},
    "qwen2_window": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_window": {"use_sliding_window": True, "max_window_layers": 1},
    "mistral_window": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "num_layers": 2, "num_heads": 4},
    "llama4_text": {"num_local_experts": 2, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 64},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": True, **_MIXED},
    # neither
    "granite": {},
    "olmo": {},
    "olmo2": {},
    "glm": {},
    "glm4": {},
    "cohere": {},
    "seed_oss": {},
    "nemotron": {},
    "stablelm": {},
    "phi": {},
    "arcee": {},
    "apertus": {},
    "ernie4_5": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "persimmon": {},
    "diffllama": {},
    "bitnet": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon_alibi": {"new_decoder_architecture": False, "multi_query": False, "alibi": True},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "biogpt": {},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    # a state or a convolution beside attention, or in its place
    "qwen3_next": {**_EXPERTS, **_STATES, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": _STATES,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
    "mamba": {"state_size": 4, "intermediate_size": 64},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
}  # fmt: skip


def config_of(name: str, **more: Any) -> Any:
    """The tiny config of a family; a variant's name begins with that of its family (`qwen2_window`)."""
    family = name.removesuffix("_window").removesuffix("_alibi")
    kind = hf.CONFIG_MAPPING[family]
    known = {field.name for field in dataclasses.fields(kind)}
    common = {key: value for key, value in _COMMON.items() if key in known or key in kind.attribute_map}
    return kind(**(common | CHANGES[name] | more))
