"""Which rows each optimiser step takes, and which of them each rank computes. Pure functions of seed and step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf import process


class StepSampler:
    """The rows of each optimiser step: every epoch is a new permutation of all rows, without replacement.

    A row is used once per epoch; the last step of an epoch may be smaller. The position in the data is the step number,
    so nothing needs to be saved for a resume.
    """

    def __init__(self, num_rows: int, mini_batch_size: int, seed: int) -> None:
        assert num_rows > 0 and mini_batch_size > 0
        self.num_rows, self.mini_batch_size, self.seed = num_rows, mini_batch_size, seed
        self.steps_per_epoch = -(-num_rows // mini_batch_size)
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def rows(self, step: int) -> list[int]:
        """Row numbers of a step; steps are counted from 0 across all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        start = position * self.mini_batch_size
        return self._order[start : start + self.mini_batch_size].tolist()


def own_micro_batches(
    rows: Sequence[int], *, micro_batch_size: int, lengths: Sequence[int] | np.ndarray | None = None
) -> list[list[int]]:
    """This rank's share of the rows of one step; see `deal`."""
    return deal(
        rows,
        rank=process.rank(),
        world_size=process.world_size(),
        micro_batch_size=micro_batch_size,
        lengths=lengths,
    )


def deal(
    rows: Sequence[int],
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    lengths: Sequence[int] | np.ndarray | None = None,
) -> list[list[int]]:
    """The micro-batches of `rank`: rows of one step, dealt out so that all ranks get equally many micro-batches.

    With `lengths` (of each of `rows`, in tokens) rows are sorted by length first, longest first, so a micro-batch holds
    rows of similar length, ranks work on similar lengths at the same time, and the first micro-batch needs the most
    memory. Sizes differ by one at most; if there are fewer rows than micro-batches, some are empty.

    `deal([4, 5, 6], rank=1, world_size=2, micro_batch_size=1) → [[5], []]`, and rank 0 has `[[4], [6]]`.
    """
    order = list(rows)
    if lengths is not None:
        order = [order[i] for i in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")]
    rounds = max(1, -(-len(order) // (micro_batch_size * world_size)))
    slots = rounds * world_size
    small, larger = divmod(len(order), slots)
    edges = np.cumsum([0] + [small + (slot < larger) for slot in range(slots)]).tolist()
    return [order[edges[slot] : edges[slot + 1]] for slot in range(rank, slots, world_size)]
