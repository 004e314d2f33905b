"""One adapted layer: its wrappers, its low-rank factors, and its weight with the adapters' deltas added.

peft adapts a layer by a wrapper around it. Experts that a family keeps in stacked parameters are adapted parameter by
parameter, and the wrappers of one module's parameters stand one inside the other. Export and inference copy see a model
through `plain_modules` and `merged`, so they need not know this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Gives the whole value of a parameter, on every rank; None means that the module holds it.
FullValue = Callable[[nn.Parameter], Tensor | None]


def is_adapter(module: Any) -> bool:
    """Whether a module is peft's wrapper around a layer: low-rank factors, and the layer (or the next wrapper)."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def wrappers(module: Any) -> list[Any]:
    """The adapters around a layer, from the outermost to the innermost; none for any other module."""
    found = []
    while is_adapter(module):
        found.append(module)
        module = module.base_layer
    return found


def base_of(module: Any) -> Any:
    """The layer inside all its adapters; any other module is its own."""
    around = wrappers(module)
    return around[-1].base_layer if around else module


def adapted_key(wrapper: Any) -> str:
    """The name, in the layer, of the parameter that a wrapper adapts."""
    return getattr(wrapper, "parameter_name", "weight")


def plain_modules(model: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, module) of every module, by the names that the model has without adapters. An adapted layer comes in its
    wrappers; `base_of` is the layer."""
    yield name, model
    for key, child in base_of(model).named_children():
        yield from plain_modules(child, f"{name}.{key}" if name else key)


def plain_weights(model: Any) -> dict[str, Tensor]:
    """The state dict that the model would have without adapters; its tensors are parameters and buffers themselves."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        parts = name.split(".")
        if not any(part.startswith("lora_") for part in parts):
            found[".".join(part for part in parts if part != "base_layer")] = tensor
    return found


def factors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The low-rank factors in a module, or in a whole model, by their names; empty without adapters."""
    return {name: p for name, p in module.named_parameters() if "lora_" in name}


def own_factors(module: Any) -> list[nn.Parameter]:
    """The low-rank factors of a layer's own adapters; not those of the modules inside the layer."""
    inside = {id(p) for p in base_of(module).parameters()}
    return [p for p in factors(module).values() if id(p) not in inside] if is_adapter(module) else []


@torch.no_grad()
def merged(module: Any, key: str, value: Tensor) -> Tensor:
    """`value` (of the parameter `key` of `base_of(module)`, whole) with the deltas of its adapters added.

    Deltas and sum are in fp32, for the caller to round once. A parameter without an adapter comes back as it is.
    """
    around = [wrapper for wrapper in wrappers(module) if adapted_key(wrapper) == key]
    if not around:
        return value
    value = value.float()
    # peft computes a delta in the dtype of the factors, and rounds it to that of the weight
    with _holding([getattr(base_of(module), key)], [value]), in_fp32(own_factors(module)):
        for wrapper in around:
            for adapter in wrapper.active_adapters:
                value = value + wrapper.get_delta_weight(adapter)
    return value


@contextlib.contextmanager
def in_fp32(parameters: Sequence[nn.Parameter], value_of: FullValue = lambda parameter: None) -> Iterator[None]:
    """While inside, parameters hold their `value_of` (where that is None, their own value) in fp32."""
    values = []
    for parameter in parameters:
        value = value_of(parameter)
        values.append((parameter.detach() if value is None else value).float())
    with _holding(parameters, values):
        yield


@contextlib.contextmanager
def _holding(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """While inside, parameters hold these values, which may have another dtype."""
    held = [parameter.data for parameter in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, data in zip(parameters, held, strict=True):
            parameter.data = data
