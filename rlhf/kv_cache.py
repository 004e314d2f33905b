"""The key-value cache of the sampler: allocated once, laid out for one-token queries, reused between rollouts.

B rows, K key-value heads, C capacity in tokens, S tokens shown, E head size. Keys are kept as [B, K, E, C], so that a
query's products run along memory; what transformers sees are views of the usual shape [B, K, S, E].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# What is shown of the cache grows in steps of so many tokens: few shapes, so kernels are prepared once for each.
SHOWN_STEP = 32


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


class CacheLayer(CacheLayerMixin):
    """One layer. New keys and values go into the columns from `cache.start` of the rows `cache.rows`."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: SamplerCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        cache, heads = self.cache, key_states.shape[1]
        size = cache.allocated_rows, cache.capacity
        self.keys = key_states.new_zeros((size[0], heads, key_states.shape[-1], size[1]))
        self.values = value_states.new_zeros((size[0], heads, size[1], value_states.shape[-1]))
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        """Keys and values [B, K, T, E] into the cache."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self.cache
        start, end = cache.start, cache.start + key_states.shape[2]
        self.keys[cache.rows, :, :, start:end] = key_states.transpose(2, 3)
        self.values[cache.rows, :, start:end] = value_states

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.write(key_states, value_states)
        cache = self.cache
        if cache.prefilling:  # a prompt attends to itself alone
            return key_states, value_states
        keys, values = self.keys[cache.rows], self.values[cache.rows]
        return keys[..., : cache.shown].transpose(2, 3), values[:, :, : cache.shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.cache.prefilling else self.cache.shown), 0

    def get_seq_length(self) -> int:
        return self.cache.seen

    def get_max_length(self) -> int:
        return self.cache.capacity


class SamplerCache(Cache):
    """All layers, and where the next forward's keys and values go.

    `start` is the column that they go to, `rows` the rows, `shown` how many columns a one-token query sees, `seen` what
    transformers is told of the length so far; while `prefilling`, prompts see themselves alone.
    """

    def __init__(self, layers: int) -> None:
        self.own: list[Any] = [CacheLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.own))
        self.capacity = self.allocated_rows = 0
        self.start = self.shown = self.seen = 0
        self.prefilling = False
        self.rows = slice(0, 0)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return self.own[layer_idx].update(key_states, value_states)

    def write(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values [B, K, T, E] of layer `index` into the columns from `start` of the rows `rows`."""
        self.own[index].write(keys, values)

    def shown_flat(self, index: int, rows: int) -> tuple[Tensor, Tensor]:
        """What one-token queries of the first rows see of layer `index`: keys [B·K, E, S], values [B·K, S, E]."""
        layer = self.own[index]
        keys, values = layer.keys[:rows].flatten(0, 1), layer.values[:rows].flatten(0, 1)
        return keys[..., : self.shown], values[:, : self.shown]

    def reserve(self, rows: int, capacity: int) -> None:
        """Room for `rows` × `capacity` tokens, all zeros; storage that is large enough is used again."""
        capacity = round_up(capacity, SHOWN_STEP)
        if rows > self.allocated_rows or capacity > self.capacity:
            self.release()
            self.allocated_rows, self.capacity = rows, capacity
            return
        for layer in self.own:
            if layer.is_initialized:  # masked columns count with weight 0, and 0 × NaN would be NaN
                layer.keys.zero_()
                layer.values.zero_()

    def release(self) -> None:
        """Give the storage back."""
        for layer in self.own:
            layer.keys = layer.values = None
            layer.is_initialized = False
        self.capacity = self.allocated_rows = 0

    def copy_rows(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Rows of the first `columns` tokens into other rows; all are read before any is written."""
        for layer in self.own:
            if layer.is_initialized:
                layer.keys[targets, :, :, :columns] = layer.keys[sources, :, :, :columns]
                layer.values[targets, :, :columns] = layer.values[sources, :, :columns]

    def bytes(self) -> int:
        return sum(
            t.numel() * t.element_size()
            for layer in self.own
            if layer.is_initialized
            for t in (layer.keys, layer.values)
            if t is not None
        )
