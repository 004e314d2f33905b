"""Passes of a tiny model over the parts of a batch at the same time, each part in a thread of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# Parts of a batch. Each holds Python for some 14 ms of a pass of the demo's model, in which the others stand still, so
# with 16 parts these would be longer than the rest.
MOST_PARTS = 8


class SideBySide:
    """A causal language model, and as many parts for its passes as there are `threads`, up to MOST_PARTS; more threads
    are shared among the parts.

    The parts meet once in a pass. OpenMP's threads meet in every operation, of which a pass of a tiny model has
    thousands, and all wait there for one whose core another process uses (docs/notes.md).
    """

    def __init__(self, model: Any, threads: int) -> None:
        count = min(threads, MOST_PARTS)
        self.threads = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,))
        self.models = [model, *(_of_the_same_weights(model) for _ in range(count - 1))]

    def backward(self, ids_BT: Tensor, *, ignore: int) -> float:
        """Add the gradients of the mean cross-entropy over all tokens but the first of each row and those that are
        `ignore`; returns the loss, in nats."""
        count = int((ids_BT[:, 1:] != ignore).sum())

        def part(number: int) -> float:
            rows_BT = ids_BT[number :: len(self.models)]
            if not len(rows_BT):
                return 0.0
            logits_BTV = self.models[number](input_ids=rows_BT[:, :-1], use_cache=False).logits
            targets = rows_BT[:, 1:].flatten()
            loss = cross_entropy(logits_BTV.flatten(0, 1), targets, ignore_index=ignore, reduction="sum") / count
            loss.backward()
            return float(loss.detach())

        losses = list(self.threads.map(part, range(len(self.models))))
        model, *others = ([*each.parameters()] for each in self.models)
        for same in zip(model, *others, strict=True):
            for weight in same[1:]:
                if weight.grad is not None:
                    same[0].grad = weight.grad if same[0].grad is None else same[0].grad.add_(weight.grad)
                    weight.grad = None
        return sum(losses)

    def all(self, do: Iterable[Callable[[], object]]) -> None:
        """Call functions side by side, and wait for them."""
        for _ in self.threads.map(lambda each: each(), do):
            pass


def _of_the_same_weights(model: Any) -> Any:
    """A copy that has the model's weights, and gradients of its own."""
    made = copy.deepcopy(model)
    for weight, own in zip(made.parameters(), model.parameters(), strict=True):
        weight.data = own.data
    return made
