"""Scorers of responses: the reward model of stage 2, or anything else with the three members of `Scorer`.

    roles = build_roles(config, optimizer_steps=100, reward=RewardFunction(lambda prompt, response: -len(response)))

B sequences of a micro-batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf.template import Message, Template
from step3_ppo.rollout import Rollout, SequenceBatch


class Scorer(Protocol):
    """The type of `Roles.reward`. Final scores are (score − score_mean) / score_std, clipped to ±score_clip."""

    score_mean: float
    score_std: float

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        """One score for each of `rows` of the rollout, [B] in their order; empty without rows. Each rank calls it
        for its own rows, once for each micro-batch; `batch` holds the same rows as tensors of the actor's tokens. If a
        score is not finite, the steps of the iteration are skipped."""
        ...


@dataclass
class RewardFunction:
    """A Python function as the reward model: `function(prompt, response)` returns a number; higher is better.

    The prompt is a list of messages ({"role": …, "content": …}). The response is the text that a reader would see,
    without the end token. Scores are used as they are, clipped to ±score_clip; give `score_mean` and `score_std` if the
    function has another centre or scale. The function must return the same number for the same text, or a resumed run
    differs from an uninterrupted one.
    """

    function: Callable[[list[Message], str], float]
    score_mean: float = 0.0
    score_std: float = 1.0

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        texts = [(json.loads(rollout.messages[row]), actor_template.text(rollout.said(row))) for row in rows]
        return torch.tensor([float(self.function(prompt, response)) for prompt, response in texts])
