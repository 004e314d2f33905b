"""The families that `LeanForward` knows, by their config.json. Imports no torch, so that a plan can ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# model type → what is added to the weights of its norms. Windows and the like are refused by `attention.is_served`.
NORM_OFFSETS = {"llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0, "gemma": 1.0}
# Kinds of rotary tables that depend on the position alone, and not on the length of the sequence.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def is_lean_config(config: Mapping[str, Any]) -> bool:
    """Whether `LeanForward` knows the family of a config.json, as far as the type and the rotary table tell."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return config.get("model_type") in NORM_OFFSETS and kind in ROPE_TYPES
