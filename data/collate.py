"""Rows → padded batches. B rows, T tokens of the longest row; True in a mask means that the token counts.

An empty list of rows gives one row of pad in which nothing counts, so that every rank runs the same number of forwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.models.tensors import pad_right

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DemonstrationBatch:
    """loss_mask_BT is True where a token is predicted from those before it in its demonstration and counts in the loss.

    In packed rows the positions restart with each demonstration (and with each pad), and a token attends to nothing
    before the last position 0. Other rows need no positions: they are padded on the right, where causal attention sees
    no padding before a token.
    """

    input_ids_BT: Tensor
    loss_mask_BT: Tensor
    position_ids_BT: Tensor | None = None


@dataclass(frozen=True)
class PreferenceBatch:
    """2B rows: B chosen, then B rejected. last_B is the index of each row's last token (its end token), where the
    score is read; margin_B and pair_mask_B have one entry per pair."""

    input_ids_BT: Tensor
    last_B: Tensor
    margin_B: Tensor
    pair_mask_B: Tensor


def collate_demonstrations(
    rows: Sequence[Row], *, pad_token_id: int, train_on_prompt: bool = False
) -> DemonstrationBatch:
    """`input_ids` and `learned` of rows → a batch padded on the right to its own longest row. `learned` has start and
    end of each part that counts.

    Packed rows also have the `lengths` of the demonstrations in them. The first token of a demonstration never counts:
    nothing before it predicts it. With `train_on_prompt` all others do.
    """
    input_ids_BT = pad_right([r["input_ids"] for r in rows] or [[]], pad_token_id)
    loss_mask_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    position_ids_BT = torch.zeros_like(input_ids_BT)
    packed = any("lengths" in row for row in rows)
    for b, row in enumerate(rows):
        edges = [0, len(row["input_ids"])] if train_on_prompt else row["learned"]
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            loss_mask_BT[b, first:end] = True
        start = 0
        for length in row.get("lengths") or [len(row["input_ids"])]:
            loss_mask_BT[b, start] = False
            position_ids_BT[b, start : start + length] = torch.arange(length)
            start += length
    return DemonstrationBatch(input_ids_BT, loss_mask_BT, position_ids_BT if packed else None)


def collate_preferences(rows: Sequence[Row], *, pad_token_id: int) -> PreferenceBatch:
    """`prompt_ids`, `chosen_ids`, `rejected_ids` and `margin` of B rows → a batch of 2B rows."""
    sequences = [[*r["prompt_ids"], *r[name]] for name in ("chosen_ids", "rejected_ids") for r in rows]
    sequences = sequences or [[pad_token_id], [pad_token_id]]
    return PreferenceBatch(
        pad_right(sequences, pad_token_id),
        last_B=torch.tensor([len(s) - 1 for s in sequences]),
        margin_B=torch.tensor([float(r["margin"]) for r in rows] or [0.0]),
        pair_mask_B=torch.full((max(1, len(rows)),), bool(rows)),
    )
