"""Low-rank adapters (Hu et al. 2021) through peft: attach them, count them, switch them off."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from rlhf import console
from rlhf.errors import ConfigError, nearest
from rlhf.models.direct_weights import read_directly
from rlhf.models.merging import adapted_key, base_of, is_adapter, plain_modules, plain_weights, wrappers
from rlhf.stage_config import LoraSettings

# Model types and last names of modules for which peft makes no adapter.
_MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_OF_MAMBA = {"conv1d", "out_proj"}


def attach(model: Any, settings: LoraSettings, *, dropout: float | None = None, keep_head: str | None = None) -> Any:
    """Wrap `model` with adapters, so that nothing else is trained. With `lora_rank` 0 the model comes back as it is.

    `dropout` takes the place of `lora_dropout`. `keep_head` names a module that is trained whole, without an adapter:
    the scalar head. Raises ConfigError when `lora_target_modules` match no module, or one whose adapter could not be
    merged into its weight.
    """
    if settings.lora_rank == 0:
        return model
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = settings.lora_target_modules
    excluded = _not_plain(model) + (_without_use(model) if targets == ["all-linear"] else [])
    names = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules() if name}
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=int(settings.lora_alpha) if float(settings.lora_alpha).is_integer() else settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout if dropout is None else dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        exclude_modules=([keep_head] if keep_head else []) + excluded or None,
        fan_in_fan_out=any(kind is Conv1D for kind in names.values()),
        modules_to_save=None,
    )
    weights, head = set(model.state_dict()), model.get_output_embeddings()
    try:
        # Adapters keep the model's dtype. peft would make them fp32, and ZeRO-3 cannot hold two dtypes. The masters
        # are in fp32 anyway.
        wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(_why_not(str(error), settings, names)) from None
    if problem := _merging_problem(model, weights=weights, head=head):
        raise ConfigError(f"lora_target_modules={','.join(targets)}: {problem}")
    count = count_adapters(wrapped)
    console.say(f"LoRA: rank {settings.lora_rank} adapters on {count} modules")
    if keep_head:
        model.get_submodule(keep_head).requires_grad_(True)
    return wrapped


def _not_plain(model: nn.Module) -> list[str]:
    """The last names of modules that inherit from a linear layer but take or give something else: an adapter does not
    fit them."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and any(kind in type(module).__name__ for kind in ("Router", "Grouped"))
        }
    )


def _without_use(model: nn.Module) -> list[str]:
    """Modules that all-linear leaves out: an adapter beside a weight that is read directly learns nothing. peft refuses
    some of them by their last name, in models of some types."""
    refused = _OF_MAMBA if getattr(getattr(model, "config", None), "model_type", None) in _MAMBA else set()
    return sorted(read_directly(model) | refused)


def _why_not(text: str, settings: LoraSettings, names: Collection[str]) -> str:
    """peft's refusal in one line that names the setting."""
    targets = settings.lora_target_modules
    if "lora_dropout" in text:
        return (
            f"lora_dropout={settings.lora_dropout:g}: this model keeps its experts in stacked weights, and adapters of "
            "these have no dropout; leave it out, or name other modules in lora_target_modules"
        )
    if any(words in text for words in ("not found in the base model", "No modules were targeted", "were excluded")):
        return f"lora_target_modules={','.join(targets)} matches no module of the model{nearest(targets[0], names)}"
    return f"lora_target_modules={','.join(targets)}: {text.strip().partition(chr(10))[0]}"


def _merging_problem(model: Any, *, weights: set[str], head: Any) -> str | None:
    """Why the adapters in `model` could not be merged into its weights after the training, or None.

    `weights` are the names of its state dict without adapters; `head` was its output embedding.
    """
    users: dict[int, list[str]] = {}
    for name, module in plain_modules(model):
        for parameter in base_of(module).parameters(recurse=False):
            users.setdefault(id(parameter), []).append(name)
    for name, module in plain_modules(model):
        for wrapper in wrappers(module):
            if base_of(module) is head:
                return f"the output embedding {name} cannot have an adapter; leave it out"
            others = [other for other in users[id(getattr(base_of(module), adapted_key(wrapper)))] if other != name]
            if others:
                return f"{name} shares its weight with {others[0]}, so its adapter cannot be merged; leave it out"
    if changed := weights ^ set(plain_weights(model)):
        return f"peft changes the names of weights, such as {min(changed)}; name other modules"
    return None


def is_adapted(model: Any) -> bool:
    """Whether a model (not one module of it) has adapters."""
    return hasattr(model, "disable_adapter")


def count_adapters(model: Any) -> int:
    """The number of modules in a model that got an adapter; a stacked weight of experts counts as one."""
    return sum(1 for module in model.modules() if is_adapter(module))


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """While inside, adapters contribute nothing: the model is what it was before training."""
    with model.disable_adapter():
        yield
