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

    In packed rows, packed_mask_B1TT is True where the token of the row (third axis) may attend to the token of the last
    axis: those of its own demonstration up to itself. Positions restart with each demonstration. Other rows need
    neither: they are padded on the right, where causal attention sees no padding before a token.
    """

    input_ids_BT: Tensor
    loss_mask_BT: Tensor
    packed_mask_B1TT: Tensor | None = None
    position_ids_BT: Tensor | None = None

    def packed_inputs(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The inputs that a packed batch adds to a model's others, by the names of `CausalModel`; none if not packed.

        The mask is additive (0 or the lowest number of `dtype`), which every attention implementation understands.
        """
        if self.packed_mask_B1TT is None:
            return {}
        assert self.position_ids_BT is not None
        zero = torch.zeros((), dtype=dtype)
        mask = torch.where(self.packed_mask_B1TT, zero, torch.finfo(dtype).min)
        return {"attention_mask": mask.to(device), "position_ids_BT": self.position_ids_BT.to(device)}


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
    """`input_ids` and `prompt_length` of rows → a batch padded on the right to its own longest row.

    Packed rows have `lengths` and `prompt_lengths` of the demonstrations in them instead. The first token of a
    demonstration never counts: nothing before it predicts it.
    """
    input_ids_BT = pad_right([r["input_ids"] for r in rows] or [[]], pad_token_id)
    loss_mask_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    position_ids_BT = torch.zeros_like(input_ids_BT)
    packed = any("lengths" in row for row in rows)
    # The demonstration of its row that a token belongs to. Pads belong to none, so they attend only to themselves.
    member_BT = -1 - torch.arange(input_ids_BT.shape[1]).expand(input_ids_BT.shape).clone()
    for b, row in enumerate(rows):
        start = 0
        lengths = row.get("lengths") or [len(row["input_ids"])]
        for number, (length, prompt_length) in enumerate(
            zip(lengths, row.get("prompt_lengths") or [row["prompt_length"]], strict=True)
        ):
            first = 1 if train_on_prompt else max(1, prompt_length)
            loss_mask_BT[b, start + first : start + length] = True
            member_BT[b, start : start + length] = number
            position_ids_BT[b, start : start + length] = torch.arange(length)
            start += length
    if not packed:
        return DemonstrationBatch(input_ids_BT, loss_mask_BT)
    packed_mask_BTT = (member_BT[:, :, None] == member_BT[:, None, :]).tril()
    return DemonstrationBatch(input_ids_BT, loss_mask_BT, packed_mask_BTT[:, None], position_ids_BT)


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
