"""A reward model as what scores responses.

B sequences of a micro-batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from torch import Tensor

from rlhf.models.reward_model import RewardModel
from rlhf.template import Template
from step3_ppo.rollout import Rollout, SequenceBatch


class ModelReward:
    """A `Scorer` that asks a reward model. With the `same_tokenizer` it reads the actor's ids, else the text that they
    mean, in its own template and tokens. A model that is not from stage 2 brings no `score_mean` and `score_std`; until
    it is calibrated (`step3_ppo.calibration`) they are 0 and 1."""

    def __init__(self, reward_model: RewardModel, *, same_tokenizer: bool) -> None:
        self.reward_model, self.same_tokenizer = reward_model, same_tokenizer
        self.is_calibrated = reward_model.score_mean is not None and reward_model.score_std is not None
        self.score_mean = 0.0 if reward_model.score_mean is None else reward_model.score_mean
        self.score_std = 1.0 if reward_model.score_std is None else reward_model.score_std
        self.name = reward_model.name

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        """Raw scores of rows of a rollout, [B]: the head's output at the last token of each."""
        return self.reward_model.scores(
            [
                self.reward_model.sequence(
                    json.loads(rollout.messages[row]),
                    actor_template.text(rollout.said(row)),
                    ended=bool(rollout.stopped_B[row]),
                )
                if not self.same_tokenizer
                else self.reward_model.ended(rollout.prompts[row] + rollout.said(row), bool(rollout.stopped_B[row]))
                for row in rows
            ]
        )
