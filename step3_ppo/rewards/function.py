"""What scores responses: the reward model of stage 2, or anything else that has its three members.

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
    """The place of `Roles.reward`. Final scores are (score − score_mean) / score_std, clipped to ±score_clip."""

    score_mean: float
    score_std: float

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        """One score for each of `rows` of the rollout, [B] in their order; nothing for no rows. Called once for each
        micro-batch, by each rank for its own rows; `batch` are the same rows as tensors of the actor's tokens. A score
        that is not finite has the iteration's steps skipped."""
        ...


@dataclass
class RewardFunction:
    """A Python function in the place of a reward model: `function(prompt, response)` gives a number, higher is better.

    The prompt is a list of messages ({"role": …, "content": …}), the response the text that a reader would see, without
    end token. Scores count as they are, in the range ±score_clip; give `score_mean` and `score_std` where the function
    has another centre or scale. It must answer alike for the same text, or a resumed run is not the uninterrupted one.
    """

    function: Callable[[list[Message], str], float]
    score_mean: float = 0.0
    score_std: float = 1.0

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        texts = [(json.loads(rollout.messages[row]), actor_template.text(rollout.responses[row])) for row in rows]
        return torch.tensor([float(self.function(prompt, response)) for prompt, response in texts])
