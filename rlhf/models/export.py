"""Export to Hugging Face folders, from any ZeRO stage. Adapters are merged, and also written as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.files import new_folder
from rlhf.models.loading import unwrap
from rlhf.models.lora import base_of, factors, is_adapted, is_adapter, is_inside_adapter, merged_weight
from rlhf.training import distributed
from rlhf.training.engine import gathered
from rlhf.training.zero_internals import has_master, is_sharded

# Gives the whole value of a parameter, on every rank; None means that the module holds it.
FullValue = Callable[[nn.Parameter], Tensor | None]


def export(
    model: Any,
    folder: Path,
    *,
    tokenizer: Any,
    full_value: FullValue = lambda parameter: None,
    config_changes: dict[str, Any] | None = None,
) -> None:
    """Write a transformers model (or one with adapters) to `folder`, with tokenizer, template and generation config.

    All ranks call it, because ZeRO-3 gathers weights from all. Rank 0 holds the whole model in CPU memory and writes
    it; the folder appears when it is complete. `full_value` gives weights that are not those of the module (the moving
    average). `config_changes` go into the model's config.json.
    """
    lm = unwrap(model)
    weights = {name: tensor for name, tensor in _merged_weights(lm, full_value) if tensor is not None}
    adapters = dict(_adapter_weights(model, full_value)) if is_adapted(model) else {}
    if distributed.is_main():
        lm.config.use_cache = True
        for key, value in (config_changes or {}).items():
            setattr(lm.config, key, value)
        with new_folder(folder) as temporary:
            lm.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
            if adapters:
                _save_adapters(model, adapters, temporary / "adapter")
    distributed.barrier()


def _merged_weights(lm: Any, full_value: FullValue) -> Iterator[tuple[str, Tensor | None]]:
    """(name, tensor on rank 0) of every weight and saved buffer, with adapters added in. Only one module at a time is
    gathered."""
    persistent = set(lm.state_dict(keep_vars=True)) if not _is_sharded(lm) else None
    seen: set[int] = set()
    for name, module in lm.named_modules():
        if is_inside_adapter(name):
            continue
        source = base_of(module)
        own = [(key, p) for key, p in source.named_parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for _, p in own)
        low_rank = list(factors(module).values()) if is_adapter(module) else []
        # the delta is computed from the module's own factors, so other values are put in their place for that time
        with gathered([p for _, p in own] + low_rank), _in_place(low_rank, full_value):
            for key, parameter in own:
                value = full_value(parameter)
                tensor = parameter.detach() if value is None else value.to(parameter.dtype)
                if key == "weight":
                    tensor = merged_weight(module, tensor).to(parameter.dtype)
                # a copy, because what was gathered is sharded again when the block ends
                copy = tensor.to("cpu", copy=True).contiguous() if distributed.is_main() else None
                yield f"{name}.{key}" if name else key, copy
        for key, buffer in source.named_buffers(recurse=False):
            full = f"{name}.{key}" if name else key
            if key not in source._non_persistent_buffers_set and (persistent is None or full in persistent):
                yield full, buffer.detach().cpu() if distributed.is_main() else None


def _is_sharded(lm: Any) -> bool:
    return any(is_sharded(p) for p in lm.parameters())


class _in_place:
    """While inside, parameters hold their `full_value`."""

    def __init__(self, parameters: list[Any], full_value: FullValue) -> None:
        self.parameters, self.full_value = parameters, full_value

    def __enter__(self) -> None:
        self.saved = []
        for parameter in self.parameters:
            value = self.full_value(parameter)
            if value is not None:
                self.saved.append((parameter, parameter.data.clone()))
                parameter.data.copy_(value)

    def __exit__(self, *_: object) -> None:
        for parameter, data in self.saved:
            parameter.data.copy_(data)


def _adapter_weights(model: Any, full_value: FullValue) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in factors(model).items():
        with gathered([parameter]):
            value = full_value(parameter)
            if distributed.is_main():
                yield name, (parameter.detach() if value is None else value).to("cpu", copy=True)


def _save_adapters(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """peft's own layout, which `PeftModel.from_pretrained` reads."""
    from safetensors.torch import save_file

    folder.mkdir()
    model.peft_config["default"].save_pretrained(folder)
    save_file(
        {name.replace(".default", ""): tensor.contiguous() for name, tensor in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def full_master(parameter: nn.Parameter) -> Tensor | None:
    """The whole fp32 master of a trained parameter, under any ZeRO stage, on every rank; all ranks call it. None where
    there is none beside the module's own value: for frozen parameters, and at ZeRO-0."""
    from deepspeed.utils import safe_get_full_fp32_param

    if not parameter.requires_grad or not has_master(parameter):
        return None
    return safe_get_full_fp32_param(parameter)


def swap(left: list[Tensor], right: list[Tensor]) -> None:
    """Exchange the contents of two lists of tensors with equal shapes, in place."""
    with torch.no_grad():
        for a, b in zip(left, right, strict=True):
            held = a.detach().clone()
            a.copy_(b)
            b.copy_(held)
