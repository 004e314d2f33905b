"""Several rewards with weights as one scorer: models score micro-batches, functions whole rollouts.

B sequences of the whole rollout batch, K rewards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.kept import read_kept
from rlhf import console
from rlhf.errors import DataError
from rlhf.rewards.functions import Asked, Functions, Score
from rlhf.template import Template
from rlhf.training import distributed
from step3_ppo.advantages import normalise_scores
from step3_ppo.rewards.model import ModelReward
from step3_ppo.rollout import Rollout, SequenceBatch


@dataclass
class Part:
    """One reward of the list, under the name that metrics and files have; without a `model` it is a function."""

    name: str
    weight: float
    model: ModelReward | None = None


class WeightedRewards:
    """A `Scorer` of several parts. `scores` gives the parts' own scores [b, K], NaN where a function has none; `total`
    makes the final ones of them: each part normalised and clipped to ±score_clip, times its weight, and summed.

    Functions are asked once for a whole rollout, by rank 0, so what they get does not depend on ranks or micro-batches.
    """

    score_mean, score_std = 0.0, 1.0

    def __init__(self, parts: Sequence[Part], functions: Functions, *, clip: float, iterations: int = 1) -> None:
        self.parts, self.functions, self.clip, self.iterations = list(parts), functions, clip, iterations
        self._table_BK = torch.zeros((0, len(self.parts)))
        self._warned: set[str] = set()

    @property
    def names(self) -> list[str]:
        return [part.name for part in self.parts]

    @property
    def models(self) -> list[ModelReward]:
        return [part.model for part in self.parts if part.model is not None]

    def ask(self, rollout: Rollout, template: Template, *, iteration: int) -> None:
        """Ask the functions about a rollout; all ranks call it before `scores`. Raises DataError, on all ranks."""
        answer: Any = None
        if distributed.is_main():
            try:
                answer = self._answers(rollout, template, iteration=iteration)
            except DataError as error:
                answer = error.problems
        answer = distributed.gather_objects(answer)[0]
        if isinstance(answer, list):
            raise DataError(*answer)
        self._table_BK = torch.full((len(rollout), len(self.parts)), math.nan)
        for column, name in enumerate(self.names):
            if name in answer:
                self._table_BK[:, column] = torch.tensor([math.nan if v is None else v for v in answer[name]])

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        table_BK = self._table_BK[list(rows)].clone()
        for column, part in enumerate(self.parts):
            if part.model is not None:  # also without rows: ranks that share a sharded model call it equally often
                table_BK[:, column] = part.model.scores(rollout, rows, batch, actor_template).cpu().float()
        return table_BK

    def total(self, table_BK: Tensor) -> Tensor:
        """The final scores [B] of the parts' own scores. What a function does not score counts 0; a model's score that
        is not finite stays so."""
        total_B = torch.zeros(len(table_BK))
        for column, part in enumerate(self.parts):
            mean, std = (part.model.score_mean, part.model.score_std) if part.model is not None else (0.0, 1.0)
            score_B = normalise_scores(table_BK[:, column], mean=mean, std=std, clip=self.clip)
            total_B += part.weight * (score_B if part.model is not None else score_B.nan_to_num(0.0))
        return total_B

    def _answers(self, rollout: Rollout, template: Template, *, iteration: int) -> dict[str, list[Score]]:
        asked = asked_of(rollout, template, iteration=iteration)
        state = {"global_step": iteration, "max_steps": self.iterations}
        names = [part.name for part in self.parts if part.model is None]
        found = {name: self.functions.scores(name, asked, state=state) for name in names}
        for name, values in found.items():
            self._warn_of_clipping(name, values)
        if len(names) == len(self.parts):
            unscored = [row for row in range(len(rollout)) if all(found[name][row] is None for name in names)]
            if unscored:
                raise DataError(
                    f"--reward: {asked[unscored[0]].place}: no reward scores this row ({', '.join(names)} returned "
                    "None), so nothing can be learned from it; let one of them return a number, or leave the row out"
                )
        return found

    def _warn_of_clipping(self, name: str, values: Sequence[Score]) -> None:
        beyond = sum(value is not None and abs(value) > self.clip for value in values)
        if beyond and name not in self._warned:
            self._warned.add(name)
            console.warn(
                f"{beyond} of {len(values)} scores of {name} lie beyond ±{self.clip:g} and count as that; let it "
                "return smaller numbers, or raise score_clip"
            )


def asked_of(rollout: Rollout, template: Template, *, iteration: int) -> list[Asked]:
    """The rows of a rollout as functions get them."""
    asked = []
    for row in range(len(rollout)):
        is_text, columns = read_kept(rollout.kept[row] if rollout.kept else "")
        said, messages = rollout.said(row), json.loads(rollout.messages[row])
        place = f"iteration {iteration + 1}, row {row + 1} ({_short(messages[-1]['content'])})"
        asked.append(Asked(messages, template.text(said), said, is_text, columns, place))
    return asked


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
