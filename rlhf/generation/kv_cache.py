"""The key-value cache of the sampler: allocated once, laid out for one-token queries, reused between rollouts.

B rows, K key-value heads, W the width in tokens for which it is laid out now, S tokens that a query sees, E head size.
Batched products copy what is not contiguous, and would do so at every token. So the cache is laid out for few tokens at
first, and is laid out again within the same storage when the responses need more width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# The width grows in steps of this many tokens. So the cache is seldom moved and has few shapes: kernels must be
# prepared for each new shape.
WIDTH_STEP = 32
# (keys, values): whether these lie in memory as [B, K, E, W], tokens last. On CPUs one-token products are fastest so.
TOKENS_LAST = {torch.float32: (True, False), torch.bfloat16: (False, True)}


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `number`: 33 and 32 → 64."""
    return -(-number // step) * step


def _laid_out(storage: Tensor, rows: int, heads: int, width: int, size: int, *, tokens_last: bool) -> Tensor:
    """The first elements of a flat storage as [B, K, W, E]."""
    front = storage[: rows * heads * width * size]
    return front.view(rows, heads, size, width).transpose(2, 3) if tokens_last else front.view(rows, heads, width, size)


class CacheLayer(CacheLayerMixin):
    """One layer of the cache: keys and values as [B, K, W, E], whatever their order in memory.

    New ones go to the rows `cache.rows`, into the columns from `cache.start` on. Methods without a description are
    those of transformers' interface.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: SamplerCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate `cache.allocated` tokens; heads, sizes, dtype and device are those of the first keys and values."""
        heads, tokens = key_states.shape[1], self.cache.allocated
        self.sizes = heads, key_states.shape[-1], value_states.shape[-1]
        self.key_storage = key_states.new_empty(tokens * heads * self.sizes[1])
        self.value_storage = value_states.new_empty(tokens * heads * self.sizes[2])
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.lay_out()

    def lay_out(self) -> None:
        """Lay the cache out for `cache.reserved_rows` rows and `cache.width` tokens, all zeros. Columns that do not
        count get weight 0 in attention, and 0 × NaN would be NaN."""
        self._view(self.cache.reserved_rows, self.cache.width)
        self.keys.zero_()
        self.values.zero_()

    def _view(self, rows: int, width: int) -> None:
        heads, of_key, of_value = self.sizes
        on_cpu = self.key_storage.device.type == "cpu"
        keys_last, values_last = TOKENS_LAST.get(self.key_storage.dtype, (False, False)) if on_cpu else (False, False)
        self.keys = _laid_out(self.key_storage, rows, heads, width, of_key, tokens_last=keys_last)
        self.values = _laid_out(self.value_storage, rows, heads, width, of_value, tokens_last=values_last)

    def widen(self, rows: int, width: int) -> None:
        """Give the first `rows` room for `width` tokens. They keep their content; new columns are zero."""
        keys, values = self.keys[:rows].clone(), self.values[:rows].clone()
        before = keys.shape[2]
        self._view(rows, width)
        self.keys[:, :, :before], self.keys[:, :, before:] = keys, 0
        self.values[:, :, :before], self.values[:, :, before:] = values, 0

    def write(self, key_states: Tensor, value_states: Tensor) -> None:
        """Put keys and values [B, K, T, E] into the cache."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self.cache
        if cache.column is not None:
            self.keys[cache.rows].index_copy_(2, cache.column, key_states)
            self.values[cache.rows].index_copy_(2, cache.column, value_states)
            return
        start, end = cache.start, cache.start + key_states.shape[2]
        self.keys[cache.rows, :, start:end] = key_states
        self.values[cache.rows, :, start:end] = value_states

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.write(key_states, value_states)
        cache = self.cache
        if cache.prefilling:  # prompts attend to themselves only
            return key_states, value_states
        return self.keys[cache.rows, :, : cache.shown], self.values[cache.rows, :, : cache.shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.cache.prefilling else self.cache.shown), 0

    def get_seq_length(self) -> int:
        return self.cache.seen

    def get_max_length(self) -> int:
        return self.cache.capacity


class SamplerCache(Cache):
    """All layers, and where keys and values of the next forward go.

    They go to the rows `rows`, into the columns from `start` on. A query of one token sees the first `shown` columns.
    While `prefilling`, prompts see only themselves. `seen` is the length so far that transformers is told. A `column`,
    a tensor of one number, stands for `start`, so that a graph of a step reads it anew each time.
    """

    def __init__(self, layers: int) -> None:
        self.own: list[Any] = [CacheLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.own))
        self.allocated = 0  # tokens
        self.reserved_rows = self.capacity = self.width = 0
        self.start = self.shown = self.seen = 0
        self.column: Tensor | None = None
        self.prefilling = False
        self.rows = slice(0, 0)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return self.own[layer_idx].update(key_states, value_states)

    def write(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [B, K, T, E] into layer `index`, at the rows `rows` and the columns from `start` on."""
        self.own[index].write(keys, values)

    def flat(self, index: int, rows: int) -> tuple[Tensor, Tensor]:
        """The first rows' keys and values of layer `index` as [B·K, W, E], which is what one-token queries need."""
        layer = self.own[index]
        return layer.keys[:rows].flatten(0, 1), layer.values[:rows].flatten(0, 1)

    def reserve(self, rows: int, prompt: int, response: int) -> None:
        """Make room for `rows` of `prompt` + `response` tokens. At first it is laid out for the prompts and one token
        more. Storage that is large enough is used again."""
        self.reserved_rows, self.capacity = rows, round_up(prompt + response, WIDTH_STEP)
        self.width = round_up(prompt + 1, WIDTH_STEP)
        if rows * self.capacity > self.allocated:
            self.release()
            self.allocated = rows * self.capacity
        for layer in self.own:
            if layer.is_initialized:
                layer.lay_out()

    def show(self, columns: int, rows: int) -> int:
        """Make sure that the first `rows`, the only ones needed from now on, are `columns` wide. Returns the width."""
        if columns > self.width:
            self.width = round_up(columns, WIDTH_STEP)
            for layer in self.own:
                if layer.is_initialized:
                    layer.widen(rows, self.width)
        return self.width

    def release(self) -> None:
        """Give the memory back."""
        for layer in self.own:
            layer.keys = layer.values = layer.key_storage = layer.value_storage = None
            layer.is_initialized = False
        self.allocated = 0

    def rearrange(self, sources: Tensor, columns: int) -> None:
        """Row i becomes what row `sources[i]` was, as far as its first `columns` tokens. All rows are read before any
        is written."""
        targets = (sources != torch.arange(len(sources), device=sources.device)).nonzero()[:, 0]
        sources = sources[targets]
        for layer in self.own:
            if layer.is_initialized:
                layer.keys[targets, :, :columns] = layer.keys[sources, :, :columns]
                layer.values[targets, :, :columns] = layer.values[sources, :, :columns]

    def storages(self) -> list[Tensor]:
        """The memory that holds keys and values."""
        return [t for layer in self.own if layer.is_initialized for t in (layer.key_storage, layer.value_storage)]

    def cost(self) -> tuple[int, int]:
        """Bytes of a row without tokens, and of each token of a row, once something has been written."""
        return 0, self.bytes() // self.allocated

    def bytes(self) -> int:
        """Memory that the cache takes now."""
        return sum(t.numel() * t.element_size() for t in self.storages())
