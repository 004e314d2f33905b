"""Sequences as batches, and a policy's log-probabilities of them.

S sequences of a micro-batch, T tokens of the longest with its prompt. B pairs make 2B sequences: B chosen, then B
rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.models.tensors import pad_right
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine

Ids = Sequence[int]


@dataclass(frozen=True)
class Batch:
    """`rows` are the numbers of its rows in what it was made from; in an empty batch there are none, and sequences of
    pad. count_ST is True at the tokens of the responses, end tokens included."""

    rows: list[int]
    input_ids_ST: Tensor
    count_ST: Tensor

    @property
    def lengths_S(self) -> Tensor:
        """Counted tokens of each sequence; at least 1."""
        return self.count_ST.sum(dim=1).clamp(min=1)


def by_pair(values_S: Tensor) -> Tensor:
    """[2B], chosen and then rejected, as [B, 2]."""
    return values_S.view(2, -1).t()


def collate(sequences: Sequence[tuple[Ids, Ids]], rows: Sequence[int], *, pad: int) -> Batch:
    """(prompt, response) of each sequence → a batch padded on the right. Nothing predicts the first token of a
    sequence, so it never counts."""
    input_ids_ST = pad_right([[*prompt, *response] for prompt, response in sequences], pad)
    count_ST = torch.zeros_like(input_ids_ST, dtype=torch.bool)
    for index, (prompt, response) in enumerate(sequences):
        count_ST[index, max(1, len(prompt)) : len(prompt) + len(response)] = True
    return Batch(list(rows), input_ids_ST, count_ST)


def collate_pairs(data: Any, rows: Sequence[int], *, pad: int) -> Batch:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of the rows."""
    pairs = [data[row] for row in rows]
    both = [(p["prompt_ids"], p[name]) for name in ("chosen_ids", "rejected_ids") for p in pairs]
    return collate(both or [([pad], [])] * 2, rows, pad=pad)


def kept_rows(batches: Sequence[Batch]) -> Iterator[dict[str, Any]]:
    """The sequences of a step that was skipped, as they are kept on disk."""
    for batch in batches:
        # an empty batch has rows of padding, which `zip` leaves out
        both = zip(batch.rows * 2, batch.input_ids_ST.tolist(), batch.count_ST.tolist(), strict=False)
        for row, ids, counts in both:
            yield {"row": row, "input_ids": ids, "counted": counts}


def token_logprobs(engine: TrainEngine, batch: Batch) -> Tensor:
    """log π of the counted tokens, sequence by sequence: [N], in nats."""
    device = distributed.device()
    return engine(batch.input_ids_ST.to(device), batch.count_ST.to(device)).logprobs_N


def sums_of(logprobs_N: Tensor, batch: Batch) -> Tensor:
    """Sums over the counted tokens of each sequence, [S].

    A scatter into rows and a sum along them, because `index_add` on a GPU adds in another order each time.
    """
    count = batch.count_ST[:, 1:].to(logprobs_N.device)
    dense = torch.zeros(count.shape, dtype=logprobs_N.dtype, device=logprobs_N.device)
    return dense.masked_scatter(count, logprobs_N).sum(dim=1)


def tokens_of(logprobs_N: Tensor, batch: Batch) -> list[list[float]]:
    """The counted tokens of each sequence."""
    return [part.tolist() for part in logprobs_N.cpu().split(batch.count_ST.sum(dim=1).tolist())]
