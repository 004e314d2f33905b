"""torch.compile, a layer at a time: a model repeats one layer, so one graph serves all of them and is soon built."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from rlhf.errors import ConfigError


def compile_layers(model: nn.Module) -> int:
    """Compile each of a transformers model's repeated layers in place, for any batch and length; how many they are.

    Weights, their names and hooks stay as they are. Raises ConfigError where what the compiler writes cannot be built.
    """
    _check_toolchain(model)
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ in names]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def _check_toolchain(model: nn.Module) -> None:
    on_cpu = next(model.parameters()).device.type == "cpu" and not torch.accelerator.is_available()
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if on_cpu and not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"compile: there is no C++ compiler ({' or '.join(compilers)}) for what torch.compile writes; install g++, "
            "or leave it out"
        )
