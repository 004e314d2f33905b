"""Low-rank adapters (Hu et al. 2021) through peft: attach them, count them, switch them off, merge them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlhf import console
from rlhf.errors import ConfigError, nearest
from rlhf.stage_config import LoraSettings


def attach(model: Any, settings: LoraSettings, *, dropout: float | None = None, keep_head: str | None = None) -> Any:
    """Wrap `model` with adapters, so that nothing else is trained. With `lora_rank` 0 the model comes back as it is.

    `dropout` takes the place of `lora_dropout`. `keep_head` names a module that is trained whole, without an adapter:
    the scalar head. Raises ConfigError when `lora_target_modules` match no module.
    """
    if settings.lora_rank == 0:
        return model
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = settings.lora_target_modules
    names = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules() if name}
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=int(settings.lora_alpha) if float(settings.lora_alpha).is_integer() else settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout if dropout is None else dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        exclude_modules=[keep_head] if keep_head else None,
        fan_in_fan_out=any(kind is Conv1D for kind in names.values()),
        modules_to_save=None,
    )
    try:
        # Adapters keep the model's dtype. peft would make them fp32, and ZeRO-3 cannot hold two dtypes. The masters
        # are in fp32 anyway.
        wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError:
        hints = nearest(targets[0], names)
        raise ConfigError(f"lora_target_modules={','.join(targets)} matches no module of the model{hints}") from None
    count = count_adapters(wrapped)
    console.say(f"LoRA: rank {settings.lora_rank} adapters on {count} modules")
    if keep_head:
        model.get_submodule(keep_head).requires_grad_(True)
    return wrapped


def is_adapted(model: Any) -> bool:
    """Whether a model (not one module of it) has adapters."""
    return hasattr(model, "disable_adapter")


def count_adapters(model: Any) -> int:
    """The number of modules in a model that got an adapter."""
    return sum(1 for module in model.modules() if is_adapter(module))


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """While inside, adapters contribute nothing: the model is what it was before training."""
    with model.disable_adapter():
        yield


# --- one module ------------------------------------------------------------------------------------------------------


def is_adapter(module: Any) -> bool:
    """Whether a module is peft's wrapper around one layer: the layer itself and its low-rank factors."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def base_of(module: Any) -> Any:
    """The layer inside an adapter; any other module is its own."""
    return module.base_layer if is_adapter(module) else module


def factors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The low-rank factors in a module, or in a whole model, by their names; empty without adapters."""
    return {name: p for name, p in module.named_parameters() if "lora_" in name}


def is_inside_adapter(name: str) -> bool:
    """Whether a module's dotted name is that of an adapter's part: its factors, or the layer that it wraps."""
    return ".lora_" in f".{name}" or name.endswith(".base_layer")


@torch.no_grad()
def merged_weight(module: Any, weight: Tensor) -> Tensor:
    """`weight` (of `base_of(module)`, whole) with the deltas of the module's adapters added: W + scale · B A.

    The sum is in fp32, for the caller to round once; a delta comes from peft in the dtype of its factors. Without an
    adapter the weight comes back as it is.
    """
    for adapter in module.active_adapters if is_adapter(module) else ():
        weight = weight.float() + module.get_delta_weight(adapter).float()
    return weight
