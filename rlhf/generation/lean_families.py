"""The families that `LeanForward` knows, by their config.json. Imports no torch, so that a plan can ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# model type → what is added to the weights of its norms.
NORM_OFFSETS = {"llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0, "gemma": 1.0}
# Kinds of rotary tables that depend on the position alone, and not on the length of the sequence.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def unlean(config: Mapping[str, Any]) -> str:
    """What of a config.json keeps `LeanForward` from a model: `of type opt`, `with windows`; empty if nothing does."""
    family = config.get("model_type")
    if family not in NORM_OFFSETS:
        return f"of type {family}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        return f"with rotary tables of type {kind}"
    # the other families have windows only where their config.json says so
    used = config.get("use_sliding_window", family == "mistral") and config.get("sliding_window")
    kinds = set(config.get("layer_types") or ["full_attention"])
    return "with windows" if used or kinds != {"full_attention"} else ""
