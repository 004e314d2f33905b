"""The actor's copy for generation: the same model in another layout, refreshed from the training weights.

The copy may be cut over ranks (tensor parallelism) and may have another dtype. Its memory can be freed between
rollouts. At every ZeRO stage, at most one module of the training weights is whole at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.models.loading import unwrap
from rlhf.models.merging import base_of, merged, own_factors, plain_modules
from rlhf.training.engine import gathered
from step3_ppo.hybrid.packed_linear import PackedLinear, can_pack, pack_layers
from step3_ppo.hybrid.tensor_parallel import shard


class InferenceCopy:
    """`lm` is a transformers model of the same class as the trained one, frozen, in eval mode; it holds values between
    `refresh` and `release`. `packed`: on a CPU, weights are kept in the order of its kernels (unless cut over ranks).
    """

    def __init__(
        self,
        trained: Any,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup | None,
        packed: bool = True,
    ) -> None:
        self.trained, self.device = unwrap(trained), device
        self._sources = dict(plain_modules(self.trained))
        config = copy.deepcopy(self.trained.config)
        with torch.device("meta"):
            self.lm = type(self.trained)(config).to(dtype)
            if group is not None:
                shard(self.lm, group)
        if packed and group is None and can_pack(dtype, device):
            pack_layers(self.lm, dtype)
        else:
            self.lm.tie_weights()
        self.lm.eval().requires_grad_(False)
        self._copy_buffers()
        self.is_held = False
        self._storage = self._materialise()

    def _copy_buffers(self) -> None:
        """Copy rotary frequencies, masks and the like: they are not in a checkpoint and never trained."""
        own = {name: (module, key) for name, module, key in _buffers(self.lm.named_modules())}
        for name, module, key in _buffers(self._sources.items()):
            if name in own:
                target, target_key = own[name]
                target._buffers[target_key] = module._buffers[key].detach().to(self.device, copy=True)
        left = [name for name, module, key in _buffers(self.lm.named_modules()) if module._buffers[key].is_meta]
        assert not left, f"buffers of the copy without a value: {left}"
        for module in self.lm.modules():  # rotary layers keep the frequencies a second time, as a plain attribute
            for key, value in list(vars(module).items()):
                if isinstance(value, Tensor) and value.is_meta and key.startswith("original_"):
                    setattr(module, key, getattr(module, key.removeprefix("original_")).clone())

    def _materialise(self) -> list[tuple[nn.Parameter, torch.Size]]:
        """Replace the parameters on the meta device by real ones without storage (tied ones stay one). Returns each
        with its shape."""
        storage = []
        for parameter, places in _places(self.lm).items():
            real = nn.Parameter(parameter.new_empty(0, device=self.device), requires_grad=False)
            for module, key in places:
                module._parameters[key] = real
            storage.append((real, parameter.shape))
        return storage

    def refresh(self) -> None:
        """Copy the training weights, with the adapters' deltas added on the way. All ranks take part."""
        if not self.is_held:
            for parameter, shape in self._storage:
                parameter.data = torch.empty(shape, dtype=parameter.dtype, device=self.device)
            self.is_held = True
        done: set[int] = set()
        with torch.no_grad():
            for name, module in self.lm.named_modules():
                own = [(key, p) for key, p in module.named_parameters(recurse=False) if id(p) not in done]
                done.update(id(p) for _, p in own)
                if isinstance(module, PackedLinear):
                    _pack([self._sources[source] for source in module.sources], module)
                elif own:
                    _copy_module(self._sources[name], module, own)

    def release(self) -> None:
        """Free the memory of the weights."""
        for layer in self._packed():
            layer.release()
        for parameter, _ in self._storage:
            parameter.data = parameter.data.new_empty(0)
        self.is_held = False

    def bytes(self) -> int:
        """Memory of the copy's weights on this rank while they are held."""
        plain = sum(shape.numel() * p.element_size() for p, shape in self._storage)
        return plain + sum(layer.bytes() for layer in self._packed())

    def _packed(self) -> list[PackedLinear]:
        return [module for module in self.lm.modules() if isinstance(module, PackedLinear)]


def _copy_module(source: Any, target: nn.Module, own: list[tuple[str, nn.Parameter]]) -> None:
    """One module's parameters: gathered, adapters added in fp32, cut, rounded once."""
    base = base_of(source)
    with gathered([getattr(base, key) for key, _ in own] + own_factors(source)):
        for key, parameter in own:
            value = merged(source, key, getattr(base, key).detach())
            if take := getattr(target, "take", None):  # cut over ranks
                value = take(key, value)
            assert value.shape == parameter.shape, f"{key}: {tuple(value.shape)} for {tuple(parameter.shape)}"
            parameter.data.copy_(value)


def _pack(sources: list[Any], target: PackedLinear) -> None:
    """The same for the layers that one packed layer holds."""
    bases = [base_of(source) for source in sources]
    keys = ("weight", "bias") if target.has_bias else ("weight",)
    low_rank = [factor for source in sources for factor in own_factors(source)]
    with gathered([getattr(base, key) for base in bases for key in keys] + low_rank):
        target.pack(
            [merged(source, "weight", base.weight.detach()) for source, base in zip(sources, bases, strict=True)],
            [base.bias.detach() for base in bases] if target.has_bias else [],
        )


def _places(model: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Each parameter and all modules and names under which it is held (tied embeddings are held twice)."""
    found: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(parameter, []).append((module, key))
    return found


def _buffers(modules: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any, str]]:
    """(full name, module, key) of every buffer of named modules."""
    for name, module in modules:
        layer = base_of(module)
        for key, buffer in layer._buffers.items():
            if buffer is not None:
                yield (f"{name}.{key}" if name else key), layer, key
