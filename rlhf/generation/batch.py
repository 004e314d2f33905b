"""The rows that are drawn together, and how finished ones leave them.

B rows, R response tokens, S columns of the cache, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.generation.kv_cache import round_up


@dataclass
class Batch:
    """The rows that are in the batch now: their places in the request, which have finished, their next input."""

    row_B: Tensor  # on the CPU, as is `finished_B`
    finished_B: Tensor
    hidden_BD: Tensor
    position_B: Tensor
    random_BR: Tensor  # between 0 and 1
    mask_BS: Tensor  # of the cache's columns; True counts
    bias_B11S: Tensor | None  # the same, to be added to scores

    def keep(self, places: Tensor) -> None:
        on_device = places.to(self.position_B.device)
        self.row_B, self.finished_B = self.row_B[places], self.finished_B[places]
        self.position_B, self.mask_BS = self.position_B[on_device], self.mask_BS[on_device]
        self.random_BR = self.random_BR[on_device]
        if self.bias_B11S is not None:
            self.bias_B11S = self.bias_B11S[on_device]

    def left(self, sizes: int) -> Tensor | None:
        """Which rows stay when finished ones leave, and in which order: rows from the end move to the places of
        finished ones. None: the batch stays as it is.

        Only some batch sizes occur, about `sizes` between a number and its double, so that there are few shapes.
        """
        live = int((~self.finished_B).sum())
        size = max(round_up(live, _rung(live, sizes)), 1)
        if size >= len(self.finished_B) or not live:
            return None
        keep = torch.arange(size)
        holes = self.finished_B[:size].nonzero()[:, 0]
        movers = size + (~self.finished_B[size:]).nonzero()[:, 0]
        holes = holes[: len(movers)]
        keep[holes] = movers
        return keep


def _rung(rows: int, sizes: int) -> int:
    """The step between batch sizes near `rows`; for 8 sizes 1 below 16, 2 below 32, 4 below 64, …"""
    return max(1, 1 << max(rows.bit_length() - sizes.bit_length(), 0))
