"""The moving average of the actor's trained weights: in fp32, sharded as the optimiser's masters are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rlhf.models.export import swap
from rlhf.training.engine import TrainEngine


class EMA:
    """θ_ema ← d·θ_ema + (1 − d)·θ after each applied step, θ being the fp32 masters (Yao et al. 2023, EMA).

    `average` lies in memory as the masters do and is part of a checkpoint. Under LoRA θ are the low-rank factors, so
    the exported average is the product of their averages, not the average of their products.
    """

    def __init__(self, engine: TrainEngine, *, decay: float) -> None:
        self.decay = decay
        self._masters = engine.masters()
        self.average = [m.detach().clone().float() for m in self._masters]

    @torch.no_grad()
    def update(self) -> None:
        """After an optimiser step of the actor that was applied."""
        for average, master in zip(self.average, self._masters, strict=True):
            average.lerp_(master.detach().float(), 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the masters hold the average, so `full_master` gives its whole parameters."""
        swap(self._masters, self.average)
        try:
            yield
        finally:
            swap(self._masters, self.average)
