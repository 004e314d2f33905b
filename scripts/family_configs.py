"""Tiny configs of the model families that `scripts.family_table` looks at.

A family is a model type of the installed transformers, in one of its shapes. Every config gets the sizes of `SIZES`
under the names that its type has for them, dropout everywhere, and windows of 8 tokens where it has windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, POSITIONS, WINDOW, DROPOUT = 320, 128, 8, 0.1
# A size under all the names that model types have for it.
_NAMES: tuple[tuple[int, str], ...] = (
    (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (POSITIONS, "max_position_embeddings n_positions max_seq_len n_ctx"),
    (WINDOW, "sliding_window attention_window_size window_size attention_chunk_size"),
    (32, "hidden_size n_embd d_model lru_width word_embed_proj_dim embedding_size"),
    (64, "intermediate_size ffn_dim n_inner"),
    (
        2,
        "num_hidden_layers n_layer n_layers num_layers num_key_value_heads num_experts_per_tok num_experts_per_token "
        "moe_k top_k_experts num_global_key_value_heads linear_num_key_heads hidden_size_per_layer_input",
    ),
    (
        4,
        "num_attention_heads n_head n_heads num_heads linear_num_value_heads mamba_num_heads num_experts "
        "num_local_experts n_routed_experts moe_num_experts mamba_n_heads mamba_d_conv linear_conv_kernel_dim "
        "conv_kernel rotary_dim linear_num_heads",
    ),
    (
        8,
        "head_dim global_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim "
        "linear_value_head_dim mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size linear_head_dim "
        "index_head_dim index_topk time_step_rank mamba_dt_rank",
    ),
    (
        16,
        "mamba_d_head mamba_head_dim kv_lora_rank q_lora_rank moe_intermediate_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size index_n_heads",
    ),
    (1, "bos_token_id n_group topk_group n_shared_experts first_k_dense_replace mamba_n_groups n_groups"),
)
SIZES = {name: value for value, names in _NAMES for name in names.split()}
SIZES |= {"eos_token_id": 2, "pad_token_id": 0}
CAPS = {"final_logit_softcapping", "attn_logit_softcapping", "logits_soft_cap"}
CAP = 1.0  # of logits, so low that it bites; only for types that have one
HALVES = ["sliding_attention", "full_attention"]  # the kinds of two layers


@dataclass(frozen=True)
class Family:
    """`name` in the table, `model_type` in a config.json, what differs from `SIZES`, and whether its tokens see only
    those before them (an encoder's see all)."""

    name: str
    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = True

    def config(self) -> Any:
        """The tiny config. Layer kinds that the sizes do not suit come from `changes`."""
        known = CONFIG_MAPPING[self.model_type]().to_dict()
        values: dict[str, Any] = {name: value for name, value in SIZES.items() if name in known}
        values |= {"layer_types": None} if "layer_types" in known else {}
        values |= {name: CAP for name in CAPS if known.get(name)}
        values |= {name: DROPOUT for name, value in known.items() if _is_dropout(name, value)}
        return CONFIG_MAPPING[self.model_type](**(values | dict(self.changes)))

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A random model, biases and norms moved off their zeros and ones so that mistakes show."""
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(self.config())
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        return model.eval()

    def save(self, folder: Path, seed: int = 0) -> Path:
        """The model and a tokenizer as a Hugging Face folder."""
        self.model(seed).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder


def _is_dropout(name: str, value: Any) -> bool:
    return "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes; pad, bos and eos are the ids 0, 1 and 2."""
    vocabulary = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = token_decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )


def _family(name: str, model_type: str = "", *, causal: bool = True, **changes: Any) -> Family:
    return Family(name, model_type or name, changes, causal)


_MLA: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 8}
_LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
# Factors that are 1 in the config class and not in the published models.
_GRANITE: dict[str, Any] = {
    "logits_scaling": 0.5, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2,
}  # fmt: skip
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

# Those that people use most today come first, older ones behind them.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("llama"),
        _family("llama, tied", "llama", tie_word_embeddings=True),
        _family("llama, RoPE of Llama 3", "llama", rope_parameters=_LLAMA3),
        _family("qwen3"),
        _family("qwen3_moe"),
        _family("qwen3_next", **_LINEAR),
        _family("qwen3_5_text", **_LINEAR),
        _family("qwen3_5_moe_text", **_LINEAR),
        _family("qwen2", tie_word_embeddings=True),
        _family("qwen2, windows", "qwen2", use_sliding_window=True, max_window_layers=1, layer_types=HALVES),
        _family("gemma4_text", layer_types=HALVES, num_kv_shared_layers=0),
        _family("gemma4_unified_text", layer_types=HALVES),
        _family("gemma3_text", layer_types=HALVES),
        _family("gemma3n_text", layer_types=[*HALVES, *HALVES], num_hidden_layers=4, num_kv_shared_layers=2),
        _family("gpt_oss"),
        _family("deepseek_v3", **_MLA),
        _family("deepseek_v32", **_MLA),
        _family("glm4_moe"),
        _family("glm4_moe_lite", **_MLA),
        _family("glm_moe_dsa", **_MLA),
        _family("glm4"),
        _family("mistral", sliding_window=None),
        _family("mistral, windows", "mistral"),
        _family("ministral3", sliding_window=None),
        _family("ministral", layer_types=HALVES),
        _family("mixtral", sliding_window=None),
        _family("phi3", sliding_window=None),
        _family("phi3, windows", "phi3"),
        _family("phimoe", sliding_window=None),
        _family("olmo3", layer_types=HALVES),
        _family("olmo2"),
        _family("olmo_hybrid", **_LINEAR),
        _family("olmoe"),
        _family("granite", **_GRANITE),
        _family("granitemoe", **_GRANITE),
        _family("granitemoehybrid", layer_types=["mamba", "attention"], **_GRANITE),
        _family("smollm3", sliding_window=None, no_rope_layer_interval=2),
        _family("lfm2", layer_types=["conv", "full_attention"]),
        _family("lfm2_moe", layer_types=["conv", "full_attention"]),
        _family("ernie4_5"),
        _family("ernie4_5_moe"),
        _family("hunyuan_v1_dense"),
        _family("seed_oss"),
        _family("exaone4", layer_types=HALVES),
        _family("exaone_moe", layer_types=HALVES),
        _family("hyperclovax", logits_scaling=2.0),
        _family("minicpm3", **_MLA),
        _family("internlm3"),
        _family("afmoe", layer_types=HALVES),
        _family("cwm", layer_types=HALVES),
        _family("minimax_m2"),
        _family("minimax"),
        _family("mimo_v2_flash"),
        _family("solar_open"),
        _family("hy_v3"),
        _family(
            "nemotron_h", layers_block_type=["linear_attention", "moe", "full_attention", "mlp"], num_hidden_layers=4
        ),
        _family("kimi_linear", num_key_value_heads=4, **_LINEAR),
        _family("llama4_text"),
        _family("cohere2", layer_types=HALVES),
        _family("cohere"),
        _family("apertus"),
        _family("arcee"),
        _family("dots1"),
        _family("falcon_h1", mamba_d_ssm=64, lm_head_multiplier=2.0, embedding_multiplier=3.0),
        _family("bitnet"),
        _family("helium"),
        _family("starcoder2", sliding_window=None),
        _family("starcoder2, windows", "starcoder2"),
        _family("nanochat"),
        _family("gemma2", layer_types=HALVES),
        _family("gemma"),
        _family("vaultgemma", layer_types=HALVES),
        _family("qwen2_moe"),
        _family("deepseek_v2", **_MLA),
        _family("glm"),
        _family("nemotron"),
        _family("phi"),
        _family("olmo"),
        _family("stablelm"),
        _family("jamba", attn_layer_period=2, attn_layer_offset=1),
        _family("bamba", attn_layer_indices=[1]),
        _family("zamba2", layers_block_type=["linear_attention", "hybrid"], n_mamba_heads=4, num_key_value_heads=4),
        _family("recurrent_gemma", block_types=["recurrent", "attention"]),
        _family("falcon_mamba"),
        _family("mamba2", head_dim=16, num_heads=4, n_groups=1),
        _family("mamba"),
        _family("rwkv", attention_hidden_size=32),
        _family("falcon", multi_query=True),
        _family("falcon, ALiBi", "falcon", alibi=True, multi_query=False),
        _family("gptj"),
        _family("gpt_neox"),
        _family("gpt_neo", attention_types=[[["global", "local"], 1]]),
        _family("gpt_bigcode"),
        _family("gpt2"),
        _family("bloom"),
        _family("mpt"),
        _family("opt"),
        _family("opt, narrow embeddings", "opt", word_embed_proj_dim=16, do_layer_norm_before=False),
        _family("bert", causal=False),
    )
}
# A third of them, in which each way through the code occurs.
SAMPLE = (
    "llama", "llama, RoPE of Llama 3", "qwen3_moe", "qwen3_next", "qwen2", "qwen2, windows", "gemma4_text",
    "gemma3n_text", "gpt_oss", "deepseek_v3", "deepseek_v32", "glm4", "mistral, windows", "phi3", "phimoe", "olmo2",
    "granitemoehybrid", "lfm2", "minimax", "nemotron_h", "llama4_text", "cohere2", "starcoder2", "gemma2", "jamba",
    "mamba", "rwkv", "falcon, ALiBi", "gpt_neox", "gpt2", "bloom", "opt, narrow embeddings", "bert",
)  # fmt: skip
