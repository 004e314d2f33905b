"""torch.compile, a layer at a time: a model repeats one layer, so one graph serves all of them and is soon built."""

from __future__ import annotations

from typing import Any

from torch import nn


def compile_layers(model: nn.Module) -> int:
    """Compile each of a transformers model's repeated layers in place, for any batch and length; how many they are.

    Weights, their names and hooks stay as they are.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ in names]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)
