"""Linear layers of the inference copy on a CPU, their weights kept in the order in which oneDNN's kernels read them.

At the few rows of a decode step a plain layer spends up to half its time putting the weight in that order, each time
anew. The operators are those of torch's own compiler; where they are missing, or give other results, layers stay plain.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# Rows of a product that the order is chosen for.
TYPICAL_ROWS = 16


class PackedLinear(nn.Module):
    """y = x Wᵀ + b. The weight exists only packed, and only between `pack` and `release`."""

    packed: Tensor | None

    def __init__(self, original: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.transposed = isinstance(original, Conv1D)
        self.out_features, self.in_features = original.weight.shape[:: -1 if self.transposed else 1]
        self.dtype = dtype
        self.packed = None
        self.bias: nn.Parameter | None = None
        if getattr(original, "bias", None) is not None:
            self.bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype, device="meta"), requires_grad=False)

    def pack(self, whole: Tensor) -> None:
        """Take a weight in the original's layout."""
        weight = (whole.t() if self.transposed else whole).to(self.dtype).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)

    def release(self) -> None:
        self.packed = None

    def bytes(self) -> int:
        return self.out_features * self.in_features * self.dtype.itemsize

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_layers(model: nn.Module, dtype: torch.dtype) -> int:
    """Put packed layers in the place of a model's plain linear ones; how many."""
    plain = [(name, m) for name, m in model.named_modules() if type(m) in (nn.Linear, Conv1D)]
    for name, module in plain:
        model.set_submodule(name, PackedLinear(module, dtype))
    return len(plain)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch packs on this device, and rightly."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn((48, 32), generator=generator).to(dtype)
        x, bias = torch.randn((3, 2, 32), generator=generator).to(dtype), torch.arange(48.0).to(dtype)
        with torch.no_grad():
            layer = PackedLinear(nn.Linear(32, 48), dtype)
            layer.pack(weight)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            return torch.allclose(layer(x).float(), F.linear(x, weight, bias).float(), rtol=2e-2, atol=1e-3)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
