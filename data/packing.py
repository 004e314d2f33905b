"""Several demonstrations in one row, so that little of a batch is padding. Attention never crosses them
(`data.collate`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.rows import Rows


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows go together: (order, starts); pack p holds the rows `order[starts[p]:starts[p + 1]]`.

    Best fit, longest first: each row goes into the fullest pack that has room for it, so packs are few. Lengths 5, 4, 3
    and 2 with room for 7 make the packs [5, 2] and [4, 3].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"a row of {lengths.max()} tokens does not fit a pack of {capacity}")
    packs: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # packs by the room that they have left
    any_with = 0  # bit r is set where some pack has room r
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        fitting = any_with >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                any_with &= ~(1 << room)
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(row)
        with_room[room - length].append(number)
        any_with |= 1 << (room - length)
    starts = np.cumsum([0] + [len(p) for p in packs])
    return np.array([row for p in packs for row in p], dtype=np.int64), starts


# Families whose attention cannot be told which tokens belong together: ALiBi made from a [B, T] mask, or a state.
NOT_PACKABLE = {"bloom", "mpt", "falcon", "mamba", "mamba2", "rwkv"}


def packing_problem(model_type: str) -> str | None:
    """Why a family (`config.model_type`) cannot be packed, or None."""
    if model_type in NOT_PACKABLE:
        return f"packing does not work with {model_type}: its attention would cross demonstrations; drop --packing"
    return None


class PackedRows(Sequence[dict[str, Any]]):
    """Packs of demonstrations: rows with `input_ids` (of all of them, one after another), and per demonstration its
    `lengths` and `prompt_lengths`."""

    def __init__(self, rows: Rows, capacity: int) -> None:
        self._rows = rows
        self._order, self._starts = pack(rows.lengths, capacity)
        totals = np.cumsum(np.concatenate([[0], rows.lengths[self._order]]))
        self.lengths = np.diff(totals[self._starts]).astype(np.int32)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> dict[str, Any]:
        members = self._order[self._starts[int(index)] : self._starts[int(index) + 1]]
        rows = [self._rows[i] for i in members]
        return {
            "input_ids": [token for row in rows for token in row["input_ids"]],
            "lengths": [len(row["input_ids"]) for row in rows],
            "prompt_lengths": [row["prompt_length"] for row in rows],
            "length": sum(len(row["input_ids"]) for row in rows),
        }
