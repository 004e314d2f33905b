"""The tensor-parallel sizes that a model allows, from its config.json alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names of the counts in a config.json; the first one that is there counts.
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_KEY_HEADS = ("num_key_value_heads",)
_INNER = ("intermediate_size", "ffn_dim", "n_inner")

# Model types that can be cut: those in `tensor_parallel.FAMILIES`, and those whose plan in transformers uses only the
# styles that `tensor_parallel.py` knows. A test compares the table with the installed transformers.
CUTTABLE = {
    "apertus", "arcee", "bloom", "cohere", "cohere2", "cohere_compass_text", "cwm", "ernie4_5", "exaone4",
    "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_unified_text", "gpt2", "gpt_neox", "granite",
    "helium", "hrm_text", "hyperclovax", "internlm3", "iquestcoder", "jais2", "llama", "ministral", "ministral3",
    "mistral", "nanochat", "nemotron", "olmo", "opt", "phi", "qwen2", "qwen3", "seed_oss", "smollm3",
    "starcoder2", "vaultgemma", "youtu",
}  # fmt: skip


def sizes_that_divide(config: Mapping[str, Any]) -> list[int]:
    """Every number of ranks that divides the heads, the key-value heads and the inner layer: 4 heads → 1, 2, 4."""
    config = config.get("text_config") or config
    heads = _first(config, _HEADS) or 1
    counts = [heads, _first(config, _KEY_HEADS) or heads]
    inner = _first(config, _INNER)
    if inner:
        counts.append(inner)
    return [size for size in range(1, heads + 1) if all(count % size == 0 for count in counts)]


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
        return [f"{where}: {model} is of type {model_type}, which has no plan for tensor parallelism; use 1"]
    fitting = sizes_that_divide(config)
    if size in fitting:
        return []
    heads = _first(text_config, _HEADS)
    return [
        f"{where} does not divide the attention of {model} ({heads} heads, "
        f"{_first(text_config, _KEY_HEADS) or heads} key-value heads); try {', '.join(map(str, fitting))}"
    ]


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(config[name]) for name in names if config.get(name)), None)
