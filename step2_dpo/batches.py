"""Pairs as batches, and a policy's log-probabilities of them.

B pairs of a micro-batch, 2B responses (B chosen, then B rejected), T tokens of the longest with its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.batches import own_micro_batches
from rlhf.models.tensors import pad_right
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step2_dpo.config import DPOConfig


@dataclass(frozen=True)
class PairBatch:
    """`rows` are the numbers of the pairs in the data; in an empty batch there are none, and one row of pad. count_2BT
    is True at the tokens of the responses, end tokens included."""

    rows: list[int]
    input_ids_2BT: Tensor
    count_2BT: Tensor

    @property
    def lengths_B2(self) -> Tensor:
        """Counted tokens of the chosen and the rejected response of each pair; at least 1."""
        return by_pair(self.count_2BT.sum(dim=1).clamp(min=1))


def by_pair(values_2B: Tensor) -> Tensor:
    """[2B], chosen and then rejected, as [B, 2]."""
    return values_2B.view(2, -1).t()


def collate(data: Any, rows: Sequence[int], *, pad: int) -> PairBatch:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of the rows → a batch padded on the right. Nothing predicts the
    first token of a sequence, so it never counts."""
    pairs = [data[row] for row in rows]
    both = [(p["prompt_ids"], p[name]) for name in ("chosen_ids", "rejected_ids") for p in pairs] or [([pad], [])] * 2
    input_ids_2BT = pad_right([[*prompt, *response] for prompt, response in both], pad)
    count_2BT = torch.zeros_like(input_ids_2BT, dtype=torch.bool)
    for index, (prompt, response) in enumerate(both):
        count_2BT[index, max(1, len(prompt)) : len(prompt) + len(response)] = True
    return PairBatch(list(rows), input_ids_2BT, count_2BT)


def shares(data: Any, rows: Sequence[int], config: DPOConfig) -> list[list[int]]:
    """The numbers of the pairs in each of this rank's micro-batches; all ranks have equally many, some empty."""
    return own_micro_batches(rows, micro_batch_size=config.micro_batch_size, lengths=data.lengths[list(rows)])


def micro_batches(data: Any, rows: Sequence[int], config: DPOConfig, pad: int) -> list[PairBatch]:
    """This rank's share of the pairs of a step."""
    return [collate(data, part, pad=pad) for part in shares(data, rows, config)]


def kept_rows(batches: Sequence[PairBatch]) -> Iterator[dict[str, Any]]:
    """The pairs of a step that was skipped, as they are kept on disk."""
    for batch in batches:
        # an empty batch has rows of padding, which `zip` leaves out
        both = zip(batch.rows * 2, batch.input_ids_2BT.tolist(), batch.count_2BT.tolist(), strict=False)
        for row, ids, counts in both:
            yield {"row": row, "input_ids": ids, "counted": counts}


def token_logprobs(engine: TrainEngine, batch: PairBatch) -> Tensor:
    """log π of the counted tokens, row by row: [N], in nats."""
    device = distributed.device()
    return engine(batch.input_ids_2BT.to(device), batch.count_2BT.to(device)).logprobs_N


def sums_of(logprobs_N: Tensor, batch: PairBatch) -> Tensor:
    """Sums over the tokens of each response, [B, 2]: chosen and rejected.

    A scatter into rows and a sum along them, because `index_add` on a GPU adds in another order each time.
    """
    count = batch.count_2BT[:, 1:].to(logprobs_N.device)
    dense = torch.zeros(count.shape, dtype=logprobs_N.dtype, device=logprobs_N.device)
    return by_pair(dense.masked_scatter(count, logprobs_N).sum(dim=1))
