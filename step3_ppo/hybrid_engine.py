"""How the actor gets from training to generating and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rlhf.engine import TrainEngine
from rlhf.generation import Sampler


class HybridEngine:
    """An actor that is trained through `train` and sampled from inside `generating()`.

    It generates on the training module itself: no second copy, and under ZeRO-3 the weights are gathered layer by layer
    for every token, all ranks in step.
    """

    def __init__(self, train: TrainEngine, *, pad_token_id: int) -> None:
        self.train = train
        self.pad_token_id = pad_token_id

    @contextlib.contextmanager
    def generating(self) -> Iterator[Sampler]:
        """A sampler on the current weights, valid while inside."""
        self.train.train(False)
        yield Sampler(self.train.module, pad_token_id=self.pad_token_id, synced=self.train.zero_stage == 3)
