"""Prompts and the responses that the actor gave. Every rank holds the whole rollout batch (ids and a few numbers a
token), so that whitening, permutations and mini-batches are the same on any number of ranks.

B sequences, R response tokens, T tokens of prompt and response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.models.tensors import pad_right
from rlhf.training import distributed
from step3_ppo.config import PPOConfig
from step3_ppo.hybrid.engine import HybridEngine


@dataclass
class Rollout:
    """B prompts and responses as ids, in global order, and whether a stop token ended them (`stopped_B`).

    `sampler_logprobs` are the sampler's, in nats; those of the training weights are measured later. `messages` are the
    prompts as JSON text, for other tokenizers and for people; `kept` is what rewards read of the prompts' rows
    (`data.kept`), nothing where they read none.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    sampler_logprobs: list[list[float]]
    stopped_B: Tensor
    messages: list[str]
    kept: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def said(self, row: int) -> list[int]:
        """The ids of a response without its stop token."""
        return self.responses[row][:-1] if self.stopped_B[row] else self.responses[row]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, prompt and response."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True)]

    @property
    def response_mask_BR(self) -> Tensor:
        """True on each response's tokens, its stop token included."""
        lengths = torch.tensor([len(r) for r in self.responses])
        return torch.arange(int(lengths.max())) < lengths[:, None]


@dataclass
class SequenceBatch:
    """Prompts and responses joined and padded on the right. `count_BT` is True on the response's tokens."""

    input_ids_BT: Tensor
    count_BT: Tensor
    last_B: Tensor = field(repr=False)


def sequence_batch(rollout: Rollout, rows: Sequence[int], *, pad_token_id: int) -> SequenceBatch:
    """Rows of a rollout as tensors; no rows make one row of padding in which nothing counts."""
    ids = [rollout.prompts[i] + rollout.responses[i] for i in rows] or [[pad_token_id, pad_token_id]]
    input_ids_BT = pad_right(ids, pad_token_id)
    count_BT = torch.zeros(input_ids_BT.shape, dtype=torch.bool)
    for row, index in enumerate(rows):
        count_BT[row, len(rollout.prompts[index]) : len(ids[row])] = True
    return SequenceBatch(input_ids_BT, count_BT, torch.tensor([len(row) - 1 for row in ids]))


def roll_out(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    messages: Sequence[str],
    kept: Sequence[str] = (),
    seed: int,
    iteration: int,
    micro_batch_size: int | None = None,
) -> Rollout:
    """One response to each of the global `prompts`. Each rank samples a contiguous part and all get the whole.

    The samples depend only on seed, iteration, row and position, not on the number of ranks or on
    `micro_batch_size`, the sequences that a rank samples at a time (None: all of its part).
    """
    per_rank = -(-len(prompts) // distributed.world_size())
    first = per_rank * distributed.rank()
    mine = list(range(first, min(first + per_rank, len(prompts))))
    size = micro_batch_size or max(per_rank, 1)
    made: list[tuple[int, list[int], list[float], bool]] = []
    for start in range(0, per_rank, size):  # equally many calls on every rank; the last ones may have no rows
        rows = mine[start : start + size]
        generation = sampler.generate([prompts[i] for i in rows], sampling, seed=seed, iteration=iteration, rows=rows)
        logprobs = [
            values[mask].tolist() for values, mask in zip(generation.logprobs_BR, generation.mask_BR, strict=True)
        ]
        made += zip(rows, generation.responses(), logprobs, generation.stopped_B.tolist(), strict=True)
    whole = [item for part in distributed.gather_objects(made) for item in part]
    return Rollout(
        prompts=[list(prompts[row]) for row, _, _, _ in whole],
        responses=[response for _, response, _, _ in whole],
        sampler_logprobs=[logprobs for _, _, logprobs, _ in whole],
        stopped_B=torch.tensor([stopped for _, _, _, stopped in whole]),
        messages=list(messages),
        kept=list(kept),
    )


def generate(
    hybrid: HybridEngine, asked: Sequence[Mapping[str, Any]], sampling: Sampling, config: PPOConfig, *, iteration: int
) -> Rollout:
    """One response to each row of `asked` ({"prompt_ids", "messages"}, and "kept" where rewards read columns) under the
    actor's current weights. All ranks ask for the same rows, and all get the whole rollout."""
    with hybrid.generating() as sampler:
        return roll_out(
            sampler,
            [row["prompt_ids"] for row in asked],
            sampling,
            messages=[row["messages"] for row in asked],
            kept=[row["kept"] for row in asked if "kept" in row],
            seed=config.seed,
            iteration=iteration,
            micro_batch_size=config.rollout_micro_batch_size,
        )
