"""Drawing tokens: temperature, top-k, top-p, greedy, and random numbers that belong to a row and a position.

B rows, V vocabulary. Only top-p needs the vocabulary sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The vocabulary is searched in two steps: which block, then which token of it.
BLOCK = 128


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 always takes the most likely token; `top_p` 1 and `top_k` 0 are off. No
    response has more than `max_new_tokens`, and none of the stop tokens is drawn before `min_new_tokens`."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()


def draw(
    logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling, *, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row [B], and its log-probability [B] in nats.

    The token is where the cumulative distribution exceeds the row's uniform number. The log-probability is that of
    softmax(logits / temperature), before top-p and top-k remove tokens. `forbidden` are ids that have probability 0.
    """
    if forbidden is not None and len(forbidden):
        logits_BV = logits_BV.index_fill(1, forbidden, float("-inf"))
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(dim=-1)
        return tokens_B, logits_BV.gather(1, tokens_B[:, None])[:, 0] - logits_BV.logsumexp(dim=-1)
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    whole_BV = weights_BV = logits_BV.softmax(dim=-1)
    if sampling.top_k:
        kth = weights_BV.topk(min(sampling.top_k, weights_BV.shape[1]), dim=-1).values[:, -1:]
        weights_BV = weights_BV.where(weights_BV >= kth, 0.0)
    if sampling.top_p < 1.0:
        weights_BV = _nucleus(weights_BV, sampling.top_p)
    tokens_B = invert(weights_BV, uniforms_B)
    return tokens_B, whole_BV.gather(1, tokens_B[:, None])[:, 0].log()


def invert(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The first token [B] whose cumulative weight exceeds uniform × total weight. It is never one of weight 0.

    Weights [1, 0, 3] and uniform 0.25 → token 2, because exactly a quarter of the weight comes before it.
    """
    rows, vocabulary = weights_BV.shape
    if vocabulary % BLOCK:
        weights_BV = torch.nn.functional.pad(weights_BV, (0, BLOCK - vocabulary % BLOCK))
    blocks = weights_BV.view(rows, -1, BLOCK)
    ends = blocks.sum(dim=-1).double().cumsum(dim=-1)
    points_B1 = uniforms_B.double()[:, None] * ends[:, -1:]
    block_B1 = torch.searchsorted(ends, points_B1, right=True)
    # rounding may put the point behind the last block that has weight
    last_B1 = torch.searchsorted(ends, ends[:, -1:].contiguous())
    block_B1 = torch.minimum(block_B1, last_B1)
    before = (block_B1 - 1).clamp(min=0)
    rest_B1 = points_B1 - torch.where(block_B1 > 0, ends.gather(1, before), 0.0)
    inside = blocks.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(dim=-1)
    token_B1 = torch.minimum(
        torch.searchsorted(inside, rest_B1.clamp(min=0), right=True),
        torch.searchsorted(inside, inside[:, -1:].contiguous()),
    )
    return (block_B1 * BLOCK + token_B1)[:, 0]


def _nucleus(weights_BV: Tensor, top_p: float) -> Tensor:
    """Set all weights to 0 except those of the smallest set of tokens whose share reaches `top_p` (Holtzman et al.
    2020). The most likely token always stays."""
    ordered, order = (weights_BV / weights_BV.sum(-1, keepdim=True)).sort(dim=-1, descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    beyond[:, 0] = False
    return weights_BV.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)


def uniforms(seed: int, iteration: int, rows: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1) as float64 [len(rows), count]. Each is a hash of (seed, iteration, row, position) alone, so it
    does not depend on which rows are drawn together."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(iteration))
        by_row = _mix(key ^ _mix(np.asarray(rows, dtype=np.uint64)))[:, None]
        bits = _mix(by_row ^ _mix(np.arange(count, dtype=np.uint64) + np.uint64(0xD1B54A32D192ED03))[None, :])
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: Any) -> Any:
    """The last step of SplitMix64 (Steele et al. 2014): it maps 64 bits one to one, and each depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
