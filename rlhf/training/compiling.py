"""torch.compile of single layers: a model repeats one layer, so one graph serves all of them and is built quickly."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlhf.errors import ConfigError


def compile_layers(model: nn.Module) -> None:
    """Compile the repeated layers of a transformers model in place, for any batch size and length.

    Weights, their names and hooks do not change. Raises ConfigError for a model that does not say which class its
    layers have (`_no_split_modules`).
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(f"compile: {type(model).__name__} does not say which its layers are; leave it out")
    for layer in layers:
        layer.compile(dynamic=True)
