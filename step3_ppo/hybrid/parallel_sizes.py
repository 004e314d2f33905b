"""The tensor-parallel sizes that a model allows, from its config.json alone. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Names in a config.json, of what ranks must divide wherever it is given, for all layers or for some.
_HEADS = (
    "num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads", "num_attention_heads_per_layer",
)  # fmt: skip
_KEY_HEADS = ("num_key_value_heads", "num_global_key_value_heads")
_HEAD_SIZES = ("head_dim", "global_head_dim")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_INNER = (
    "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_size_mlp", "moe_intermediate_size",
    "shared_expert_intermediate_size", "shared_intermediate_size", "dense_intermediate_size",
    "prefix_dense_intermediate_size",
)  # fmt: skip

# Model types that can be cut: those in `parallel_plans.FAMILIES`, and those whose plan in transformers was tested. A
# test compares both tables with the installed transformers.
CUTTABLE = {
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "beam", "biogpt", "bloom", "codegen", "cohere", "cohere2",
    "cohere2_moe", "cohere_compass_text", "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text",
    "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe",
    "granitemoe_swa", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_moe", "hy_v3", "hyperclovax",
    "internlm3", "iquestcoder", "jais2", "kolibri1", "laguna", "llama", "mellum", "mimo_v2_flash", "minicpm3",
    "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "mpt", "nanochat",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2",
    "vaultgemma", "xglm", "youtu",
}  # fmt: skip

# Those of them whose attention is computed whole on every rank: if its weights are cut, then not by heads.
WHOLE_ATTENTION = {
    "afmoe", "axk1", "codegen", "deepseek_v3", "falcon", "flex_olmo", "flint", "gpt_bigcode", "granitemoe",
    "granitemoeshared", "hunyuan_v1_moe", "minimax_m2", "minimax_m3_vl_text", "mpt", "olmo2", "olmo3", "olmoe",
    "persimmon", "phi3", "phimoe", "stablelm", "youtu",
}  # fmt: skip


def sizes_that_divide(config: Mapping[str, Any]) -> list[int]:
    """Every number of ranks that divides all that is cut: 4 heads, 2 key-value heads, an inner layer of 64 → 1, 2."""
    config = config.get("text_config") or config
    counts = [count for found in (_attention(config), _inner(config)) for count in found.values()]
    return [size for size in range(1, (_heads(config) or 8) + 1) if all(count % size == 0 for count in counts)]


def rank_problems(*, size: int, ranks: int) -> list[str]:
    """A line where the `ranks` of a node cannot be divided into groups of `size`."""
    if ranks % size == 0:
        return []
    fitting = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
    return [f"step3_ppo.inference_tp_size={size} does not divide the {ranks} ranks of a node; try {fitting}"]


def parallel_problems(config: Mapping[str, Any], *, model: str, size: int) -> list[str]:
    """What keeps a model from being cut into `size` parts, one line each."""
    if size == 1:
        return []
    where, text_config = f"step3_ppo.inference_tp_size={size}", config.get("text_config") or config
    model_type = str(text_config.get("model_type", ""))
    if model_type not in CUTTABLE:
        return [f"{where}: {no_plan(model, model_type)}"]
    fitting = ", ".join(map(str, sizes_that_divide(config)))
    for what, counts in (("attention", _attention(text_config)), ("inner layers", _inner(text_config))):
        if any(count % size for count in counts.values()):
            numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
            return [f"{where} does not divide the {what} of {model} ({numbers}); try {fitting}"]
    return []


def no_plan(model: str, model_type: str) -> str:
    """The end of a message about a model that cannot be cut."""
    return f"{model} is of type {model_type}, which has no plan for tensor parallelism; use 1"


def _heads(config: Mapping[str, Any]) -> int:
    """The number of heads, or what is common to those of all layers; 0 where a config.json leaves it to its class."""
    return math.gcd(*_numbers(config, _HEADS))


def _attention(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a model's attention that ranks must divide, by what a message calls them."""
    if config.get("model_type") not in WHOLE_ATTENTION:
        heads = _heads(config)
        return {"heads": heads, "key-value heads": math.gcd(*_numbers(config, _KEY_HEADS)) or heads}
    sizes = _numbers(config, _HEAD_SIZES)
    if not sizes and (heads := _heads(config)):
        sizes = [width // heads for width in _numbers(config, _WIDTHS)]
    # the outputs of each layer are a multiple of this, whatever the numbers of heads
    return {"numbers a head": math.gcd(*sizes)}


def _inner(config: Mapping[str, Any]) -> dict[str, int]:
    """The inner sizes of dense layers and of experts, by their names in the config.json."""
    found = {name: math.gcd(*_numbers(config, (name,))) for name in _INNER}
    return {name: size for name, size in found.items() if size}


def _numbers(config: Mapping[str, Any], names: tuple[str, ...]) -> list[int]:
    """All numbers under these names: one for the model, a list over the layers, or layers of their own."""
    layers = config.get("per_layer_config") or {}
    found = [table.get(name) for table in (config, *layers.values()) for name in names]
    return [int(n) for value in found if value for n in (value if isinstance(value, list) else [value])]
