"""transformers' own cache behind the interface of the sampler's: for models that keep more than keys and values.

Linear attention, state-space layers and convolutions keep a state that no column of a key-value cache stands for. Their
cache grows with the sequence and holds the rows of the batch, so all prompts are read at once.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)


def needs_own_cache(config: Any) -> bool:
    """Whether transformers gives a model of this config a cache with anything but keys and values of every layer."""
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # kinds of layers that a model's own code has
        return False
    return any(type(layer) not in _PLAIN for layer in layers)


class _Own(DynamicCache):
    """transformers' cache, which does not know its length where no layer has keys and values."""

    length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) if self._attends() else self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return super().get_mask_sizes(query_length, layer_idx) if self._attends() else (self.length + query_length, 0)

    def _attends(self) -> bool:
        return any(isinstance(layer, CacheLayerMixin) for layer in self.layers)


class StateCache:
    """A `DynamicCache` for one batch of the sampler. The attributes are those that the sampler sets of `SamplerCache`;
    rows and columns follow from the order of the calls."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._own: Any = None
        self.capacity = self.start = self.shown = self.seen = 0
        self.prefilling = False
        self.rows = slice(0, 0)

    @property
    def own(self) -> Any:
        """What the model gets; it is told how many tokens it has seen."""
        self._own.length = self.seen
        return self._own

    def reserve(self, rows: int, prompt: int, response: int) -> None:
        """Begin a batch: nothing of the last one is kept."""
        self._own, self.capacity = _Own(config=self.config), prompt + response

    def show(self, columns: int, rows: int) -> int:
        """The width after the next token: it grows by itself."""
        return columns

    def release(self) -> None:
        """Give the memory back."""
        self._own = None

    def rearrange(self, sources: Tensor, columns: int) -> None:
        """Row i becomes what row `sources[i]` was; there are as many rows as sources."""
        self._own.reorder_cache(sources)

    def cost(self) -> tuple[int, int]:
        """Bytes of a row without tokens, and of each token of a row, from a row of one token."""
        fixed = growing = 0
        for layer in self._own.layers:
            for name, tensor in _tensors(layer):
                if name in ("keys", "values", "indexer_keys", "indexer_position_ids"):
                    growing += tensor.numel() * tensor.element_size()
                else:
                    fixed += tensor.numel() * tensor.element_size()
        return fixed, growing

    def bytes(self) -> int:
        """Memory that the cache takes now."""
        layers = () if self._own is None else self._own.layers
        return sum(tensor.numel() * tensor.element_size() for layer in layers for _, tensor in _tensors(layer))


def _tensors(layer: Any) -> list[tuple[str, Tensor]]:
    """The tensors that a layer of the cache holds, alone or in lists, with the names of its attributes."""
    found = []
    for name, value in vars(layer).items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [(name, tensor) for tensor in values if isinstance(tensor, Tensor)]
    return found
