"""Linear layers whose weight the model reads instead of calling the layer, as state-space models do for fused kernels.

What takes the place of such a layer, or is added to its output, is left out there: it must stay the plain layer.
"""

from __future__ import annotations

import inspect
import re
from functools import cache

from torch import nn
from transformers.pytorch_utils import Conv1D

# A dtype, a device and a shape need no values. A slice is read in a mode of Bloom for comparisons (`slow_but_exact`).
_READ = re.compile(r"\bself\.(\w+)\.weight\b(?!\.(?:dtype|device|shape)\b|\[| =)")


def read_directly(model: nn.Module) -> set[str]:
    """The full names of those layers in a model, as the source of its classes has it."""
    return {
        f"{parent_name}.{name}" if parent_name else name
        for parent_name, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, (nn.Linear, Conv1D)) and name in _names_in(type(parent))
    }


@cache
def _names_in(kind: type) -> frozenset[str]:
    """The attributes of a class of modules whose weight its methods read."""
    found: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith(("torch.", "builtins")):
            try:
                found.update(_READ.findall(inspect.getsource(base)))
            except (OSError, TypeError):  # a class made in an interpreter has no source
                continue
    return frozenset(found)
