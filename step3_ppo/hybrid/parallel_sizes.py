"""Which tensor-parallel sizes a model allows, from its config.json alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names of a family's counts, the first that is there.
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_KEY_HEADS = ("num_key_value_heads",)
_INNER = ("intermediate_size", "ffn_dim", "n_inner")


def sizes_that_divide(config: Mapping[str, Any]) -> list[int]:
    """Every number of ranks that whole heads, key-value heads and the inner layer divide into: 4 heads → 1, 2, 4."""
    config = config.get("text_config") or config
    heads = _first(config, _HEADS) or 1
    counts = [heads, _first(config, _KEY_HEADS) or heads]
    inner = _first(config, _INNER)
    if inner:
        counts.append(inner)
    return [size for size in range(1, heads + 1) if all(count % size == 0 for count in counts)]


def parallel_problems(config: Mapping[str, Any], *, model: str, size: int) -> list[str]:
    """A line when a model cannot be cut into `size` parts, with the sizes that can."""
    fitting = sizes_that_divide(config)
    if size in fitting:
        return []
    heads = _first(config.get("text_config") or config, _HEADS)
    return [
        f"step3_ppo.inference_tp_size={size} does not divide the attention of {model} ({heads} heads, "
        f"{_first(config.get('text_config') or config, _KEY_HEADS) or heads} key-value heads); "
        f"try {', '.join(map(str, fitting))}"
    ]


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(config[name]) for name in names if config.get(name)), None)
