"""The sampler: prefill, KV cache, one token at a time; rows that finished leave the batch.

Used by rollout, chat and evaluation. A row's random numbers depend on (seed, iteration, global row, position) alone, so
its samples are the same in any batch and on any number of ranks, wherever the logits agree bitwise.

B rows, P prompt tokens (left-padded), R response tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rlhf import distributed
from rlhf.causal_model import CausalModel
from rlhf.models import backbone, unwrap

# Finished rows are taken out of the batch when they are at least this share of it: moving the cache costs, too.
COMPACTION_SHARE = 0.125


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `min_new_tokens` masks the stop tokens below it."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass
class Generation:
    """Responses: ids [B, R] (pad beyond the end), the mask of what counts (the stop token included), the
    log-probabilities of softmax(logits / temperature) in nats, and whether a stop token ended the row."""

    ids_BR: Tensor
    mask_BR: Tensor
    logprobs_BR: Tensor
    stopped_B: Tensor

    def responses(self) -> list[list[int]]:
        """Each row's counted ids."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids_BR, self.mask_BR, strict=True)]


class DecodeLayer(CacheLayerMixin):
    """One layer's keys and values [B, H, capacity, D], allocated once and filled from the left."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads = key_states.shape[:2]
        self.keys = key_states.new_empty((rows, heads, self.capacity, key_states.shape[-1]))
        self.values = value_states.new_empty((rows, heads, self.capacity, value_states.shape[-1]))
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (ascending), in place."""
        assert self.keys is not None and self.values is not None
        for name in ("keys", "values"):
            whole = getattr(self, name)
            whole[: len(rows), :, : self.length] = whole[rows, :, : self.length]
            setattr(self, name, whole[: len(rows)])


class Sampler:
    """Draws responses from a causal language model (a transformers model or a `CausalModel`).

    `synced`: the ranks call the model equally often, which ZeRO-3's gathers need; a rank that is done keeps stepping
    until the others are. `compaction`: finished rows leave the batch.
    """

    def __init__(self, model: Any, *, pad_token_id: int, synced: bool = False, compaction: bool = True) -> None:
        self.lm = unwrap(model.lm if isinstance(model, CausalModel) else model)
        self.backbone = backbone(self.lm)
        self.pad_token_id, self.synced, self.compaction = pad_token_id, synced, compaction
        self.takes_positions = "position_ids" in inspect.signature(self.backbone.forward).parameters

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int = 0,
        iteration: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Generation:
        """One response to each prompt (lists of ids). `rows` are the prompts' global row numbers, by default 0, 1, …"""
        count, width = len(prompts), sampling.max_new_tokens
        ids_BR = torch.full((count, width), self.pad_token_id)
        mask_BR = torch.zeros((count, width), dtype=torch.bool)
        logprobs_BR = torch.zeros((count, width))
        stopped_B = torch.zeros(count, dtype=torch.bool)
        uniforms_BR = uniforms(seed, iteration, range(count) if rows is None else rows, width)
        for position, alive, tokens, logprobs, stopped in self._steps(prompts, sampling, uniforms_BR):
            ids_BR[alive, position], logprobs_BR[alive, position] = tokens, logprobs
            mask_BR[alive, position] = True
            stopped_B[alive[stopped]] = True
        return Generation(ids_BR, mask_BR, logprobs_BR, stopped_B)

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, seed: int = 0) -> Iterator[int]:
        """The response's ids one by one, the stop token included."""
        for _, _, tokens, _, _ in self._steps([prompt], sampling, uniforms(seed, 0, [0], sampling.max_new_tokens)):
            yield int(tokens[0])

    def _steps(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms_BR: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        """Yields (position, rows that are alive, their tokens, log-probabilities, which of them stopped), on the CPU."""
        was_training = self.lm.training
        self.lm.eval()
        try:
            yield from self._decode(prompts, sampling, uniforms_BR)
        finally:
            self.lm.train(was_training)

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms_BR: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        device, width = self.device, sampling.max_new_tokens
        if not prompts and not self.synced:
            return
        ids, attention = _left_padded(prompts or [[self.pad_token_id]], self.pad_token_id)
        longest = ids.shape[1]
        # columns of the response are attended to as they come, by every row that is still there
        attention = torch.cat([attention, torch.ones((len(ids), width), dtype=torch.long)], dim=1).to(device)
        next_position = attention[:, :longest].sum(dim=1)
        positions = (attention[:, :longest].cumsum(dim=1) - 1).clamp(min=0)
        cache = Cache(layers=[DecodeLayer(longest + width) for _ in range(self._layers())])
        stop_ids = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)
        alive = torch.arange(len(prompts))  # global indices of the rows in the batch
        finished = torch.zeros(len(ids), dtype=torch.bool)  # of the batch as it is now
        finished[len(prompts) :] = True
        batch_rows = torch.arange(len(ids))
        uniforms_BR = uniforms_BR if prompts else torch.zeros((1, width), dtype=torch.float64)
        hidden = self._forward(ids.to(device), attention[:, :longest], positions, cache)
        for position in range(width):
            logits_BV = self.lm.get_output_embeddings()(hidden).float()
            below_minimum = position < sampling.min_new_tokens
            tokens, logprobs = draw(
                logits_BV,
                uniforms_BR[batch_rows, position].to(device),
                sampling,
                forbidden=stop_ids if below_minimum else None,
            )
            stopped = torch.isin(tokens, stop_ids).cpu()
            live = ~finished
            alive = batch_rows[live]
            if len(alive):
                yield position, alive, tokens.cpu()[live], logprobs.cpu()[live], stopped[live]
            finished = finished | stopped
            if position + 1 == width or self._all_done(bool(finished.all())):
                return
            share = float(finished.float().mean())
            if self.compaction and share >= COMPACTION_SHARE and not bool(finished.all()):
                keep = (~finished).nonzero()[:, 0]
                batch_rows, finished = batch_rows[keep], finished[keep]
                keep = keep.to(device)
                tokens, attention, next_position = tokens[keep], attention[keep], next_position[keep]
                for layer in cache.layers:
                    layer.keep(keep)  # type: ignore[attr-defined]
            columns = attention[:, : longest + position + 1]
            hidden = self._forward(tokens[:, None], columns, next_position[:, None], cache)
            next_position = next_position + 1

    def _forward(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Hidden states of the last column: [B, D]."""
        extra = {"position_ids": positions} if self.takes_positions else {}
        return self.backbone(
            input_ids=ids, attention_mask=attention, past_key_values=cache, use_cache=True, **extra
        )[0][:, -1]  # fmt: skip

    def _layers(self) -> int:
        return int(self.lm.config.get_text_config().num_hidden_layers)

    def _all_done(self, done: bool) -> bool:
        return done if not self.synced else distributed.max_over_ranks(not done) == 0


def draw(
    logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling, *, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution at a uniform number, and its log-probability.

    The log-probability is that of softmax(logits / temperature), before top-p and top-k cut mass away. The vocabulary
    is sorted for top-p alone.
    """
    if forbidden is not None and len(forbidden):
        logits_BV = logits_BV.index_fill(1, forbidden, float("-inf"))
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(dim=-1)
        return tokens_B, logits_BV.log_softmax(dim=-1).gather(1, tokens_B[:, None])[:, 0]
    logprobs_BV = (logits_BV / sampling.temperature).log_softmax(dim=-1)
    probabilities_BV = logprobs_BV.exp()
    if sampling.top_k:
        kth = probabilities_BV.topk(min(sampling.top_k, probabilities_BV.shape[1]), dim=-1).values[:, -1:]
        probabilities_BV = probabilities_BV.where(probabilities_BV >= kth, 0.0)
    if sampling.top_p < 1.0:
        probabilities_BV = _nucleus(probabilities_BV, sampling.top_p)
    cumulative_BV = probabilities_BV.cumsum(dim=-1, dtype=torch.float64)
    # strictly below the total, and never on a token of probability 0: the first whose cumulative mass exceeds it
    points_B = uniforms_B.double() * cumulative_BV[:, -1]
    tokens_B = torch.searchsorted(cumulative_BV, points_B[:, None], right=True)[:, 0]
    tokens_B = tokens_B.clamp(max=logits_BV.shape[1] - 1)
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]


def _nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose mass reaches `top_p`; the most likely one always stays."""
    ordered, order = (probabilities_BV / probabilities_BV.sum(-1, keepdim=True)).sort(dim=-1, descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    beyond[:, 0] = False
    return probabilities_BV.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)


def uniforms(seed: int, iteration: int, rows: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1) as float64 [len(rows), count], each a hash of (seed, iteration, row, position) alone."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(iteration))
        by_row = _mix(key ^ _mix(np.asarray(rows, dtype=np.uint64)))[:, None]
        bits = _mix(by_row ^ _mix(np.arange(count, dtype=np.uint64) + np.uint64(0xD1B54A32D192ED03))[None, :])
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: Any) -> Any:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64 bits in which each bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [B, P], the prompts ending in the last column."""
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_token_id)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        attention[index, width - len(prompt) :] = 1
    return ids, attention
