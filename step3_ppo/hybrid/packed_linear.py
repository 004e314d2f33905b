"""Linear layers of the inference copy on a CPU, with weights in the order in which oneDNN's kernels read them.

A decode step has few rows, and a plain layer spends up to half of its time there on putting the weight in that order,
at every call. The operators are those of torch's own compiler. If they are missing, or give other results, layers stay
plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.generation.lean_forward import FUSED, is_lean
from rlhf.models.direct_weights import read_directly

# Number of rows of a product that the order is chosen for.
TYPICAL_ROWS = 16


class PackedLinear(nn.Module):
    """y = x Wᵀ + b, for one layer, or for several with the same input: their outputs are then side by side. The weight
    exists only in packed form, between `pack` and `release`. `sources` are the layers' names in the model."""

    packed: Tensor | None

    def __init__(self, originals: Sequence[Any], dtype: torch.dtype, sources: Sequence[str] = ()) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.transposed = isinstance(originals[0], Conv1D)
        shapes = [original.weight.shape[:: -1 if self.transposed else 1] for original in originals]
        self.widths, self.in_features = [int(shape[0]) for shape in shapes], int(shapes[0][1])
        self.dtype = dtype
        self.packed = None
        self.bias: Tensor | None = None
        self.has_bias = getattr(originals[0], "bias", None) is not None

    @property
    def weight(self) -> Tensor:
        """Some families ask a layer's weight for its dtype. This one has no values; `pack_layers` leaves out layers
        whose values are asked for."""
        return torch.empty(0, dtype=self.dtype)

    def pack(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        """Take the weights, in the layout of the originals, and the biases."""
        weight = torch.cat([(w.t() if self.transposed else w).to(self.dtype) for w in weights])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        self.bias = torch.cat([b.to(self.dtype) for b in biases]) if self.has_bias else None

    def release(self) -> None:
        self.packed = self.bias = None

    def bytes(self) -> int:
        return sum(self.widths) * (self.in_features + self.has_bias) * self.dtype.itemsize

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Part(nn.Module):
    """One of the layers inside a `PackedLinear`, under its old name for callers; it computes all of them."""

    def __init__(self, whole: PackedLinear, index: int) -> None:
        super().__init__()
        self.index = index
        self.__dict__["whole"] = whole  # not a submodule: the model has it in another place

    def forward(self, x: Tensor) -> Tensor:
        whole: PackedLinear = self.__dict__["whole"]
        return whole(x).split(whole.widths, dim=-1)[self.index]


def pack_layers(model: Any, dtype: torch.dtype) -> int:
    """Replace a model's plain linear layers by packed ones; returns how many."""
    count, plain = 0, read_directly(model)
    for parent_name, parent in list(model.named_modules()) if is_lean(model) else ():
        for name, parts in FUSED.items():
            originals = [getattr(parent, part, None) for part in parts]
            if all(type(original) is nn.Linear for original in originals):
                whole = PackedLinear(originals, dtype, [f"{parent_name}.{part}" for part in parts])
                setattr(parent, name, whole)
                for index, part in enumerate(parts):
                    setattr(parent, part, Part(whole, index))
                count += 1
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, Conv1D) and name not in plain:
            model.set_submodule(name, PackedLinear([module], dtype, [name]))
            count += 1
    return count


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch packs on this device, with right results."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn((48, 32), generator=generator).to(dtype)
        x, bias = torch.randn((3, 2, 32), generator=generator).to(dtype), torch.arange(48.0).to(dtype)
        with torch.no_grad():
            layer = PackedLinear([nn.Linear(32, 48)], dtype)
            layer.pack([weight], [bias])
            return torch.allclose(layer(x).float(), F.linear(x, weight, bias).float(), rtol=2e-2, atol=1e-3)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
