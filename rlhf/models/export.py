"""Export to Hugging Face folders, from any ZeRO stage. Adapters are merged, and also written as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ModelError
from rlhf.files import new_folder
from rlhf.models.loading import unwrap
from rlhf.models.lora import is_adapted
from rlhf.models.merging import FullValue, base_of, factors, in_fp32, merged, own_factors, plain_modules, plain_weights
from rlhf.training import distributed
from rlhf.training.engine import gathered
from rlhf.training.zero_internals import has_master


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
    average). `config_changes` go into the model's config.json. Raises ModelError, before anything is written, if a
    weight of the model would be missing.
    """
    lm = unwrap(model)
    weights = dict(_merged_weights(lm, full_value))
    _check_names(lm, weights, folder)
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
    seen: set[int] = set()
    for name, module in plain_modules(lm):
        source, low_rank = base_of(module), own_factors(module)
        own = [(key, p) for key, p in source.named_parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for _, p in own)
        # the deltas are computed from the module's own factors, so other values are put in their place for that time
        with gathered([p for _, p in own] + low_rank), in_fp32(low_rank, full_value):
            for key, parameter in own:
                value = full_value(parameter)
                tensor = parameter.detach() if value is None else value.to(parameter.dtype)
                tensor = merged(module, key, tensor).to(parameter.dtype)
                # a copy, because what was gathered is sharded again when the block ends
                copy = tensor.to("cpu", copy=True).contiguous() if distributed.is_main() else None
                yield f"{name}.{key}" if name else key, copy
        for key, buffer in source.named_buffers(recurse=False):
            if key not in source._non_persistent_buffers_set:
                yield f"{name}.{key}" if name else key, buffer.detach().cpu() if distributed.is_main() else None


def _check_names(lm: Any, names: Collection[str], folder: Path) -> None:
    """Refuse to write a folder with other weights than those of the model. Tied weights are written once."""
    wanted = plain_weights(lm)
    written = {id(wanted[name]) for name in names if name in wanted}
    ignored = getattr(lm, "_keys_to_ignore_on_save", None) or ()
    lost = [name for name, tensor in wanted.items() if id(tensor) not in written and name not in ignored]
    for what, found in (("lack", lost), ("hold, beside those of the model,", [n for n in names if n not in wanted])):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ModelError(
                f"{folder} is not written: it would {what} {', '.join(found[:3])}{more}; the checkpoints hold what was "
                "trained"
            )


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
