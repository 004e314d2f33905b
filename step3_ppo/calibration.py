"""The scale of a reward model of another tool: mean and spread of its scores on responses of the SFT actor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf import console
from rlhf.errors import ModelError
from rlhf.files import write_json
from rlhf.generation.drawing import Sampling
from rlhf.models.loading import unwrap
from rlhf.models.scalar_model import SMALLEST_STD
from rlhf.training import distributed
from step3_ppo.batches import micro_batches
from step3_ppo.config import PPOConfig
from step3_ppo.rewards.model import ModelReward
from step3_ppo.rewards.weighted import WeightedRewards
from step3_ppo.roles import Roles
from step3_ppo.rollout import Rollout, generate, sequence_batch

NAME = "calibration.json"
RESPONSES = 128
_ITERATION = 1 << 40  # of the random numbers; no iteration of a run has this number


def calibrate(roles: Roles, data: Sequence[Mapping[str, Any]], sampling: Sampling, config: PPOConfig) -> None:
    """Give each reward model without `score_mean` and `score_std` those of its raw scores on responses to some prompts.

    All ranks call it while the actor is still the model of stage 1. The figures are kept in the stage's folder; a run
    that is resumed reads them. A critic that starts from the reward model gets the same. Nothing happens with a reward
    model of stage 2. Raises ModelError if the scores are not finite or all alike.
    """
    reward = roles.reward
    if isinstance(reward, WeightedRewards):
        for part in reward.parts:
            if part.model is not None and not part.model.is_calibrated:
                _calibrate(part.model, f"calibration-{part.name}.json", part.name, roles, data, sampling, config)
    elif isinstance(reward, ModelReward) and not reward.is_calibrated:
        _calibrate(reward, NAME, "the reward model", roles, data, sampling, config)


def _calibrate(
    reward: ModelReward,
    file: str,
    called: str,
    roles: Roles,
    data: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    config: PPOConfig,
) -> None:
    path = config.output_dir / file
    if not path.exists():
        found = _measure(reward, roles, data, sampling, config)
        if distributed.is_main():
            write_json(path, found)
        distributed.barrier()
    kept = json.loads(path.read_text(encoding="utf-8"))
    mean, std = float(kept["score_mean"]), float(kept["score_std"])
    reward.score_mean, reward.score_std = mean, std
    if roles.critic is not None and roles.critic.from_reward and reward.name == config.reward_model:
        roles.critic.score_mean, roles.critic.score_std = mean, std
        of_critic = unwrap(roles.critic.engine.module.model).config
        of_critic.score_mean, of_critic.score_std = mean, std
    console.say(
        f"{called} is not from stage 2: its scores on {kept['responses']} responses of the SFT actor have mean "
        f"{mean:.3f} and standard deviation {std:.3f}"
    )


def _measure(
    reward: ModelReward, roles: Roles, data: Sequence[Mapping[str, Any]], sampling: Sampling, config: PPOConfig
) -> dict[str, Any]:
    count = min(RESPONSES, len(data))
    asked = [data[number * len(data) // count] for number in range(count)]
    rollout = generate(roles.actor.hybrid, asked, sampling, config, iteration=_ITERATION)
    scores_B = _scores(reward, roles, rollout, config).double()
    mean, std = float(scores_B.mean()), float(scores_B.std(unbiased=False))
    if not bool(torch.isfinite(scores_B).all()):
        raise ModelError(f"{reward.name}: the reward model's scores are not finite numbers")
    if not std > SMALLEST_STD:
        raise ModelError(f"{reward.name}: the reward model gives every response the same score ({mean:.3f})")
    return {"reward_model": reward.name, "responses": count, "score_mean": mean, "score_std": std}


def _scores(reward: ModelReward, roles: Roles, rollout: Rollout, config: PPOConfig) -> Tensor:
    """The raw scores of a whole rollout, [B], on every rank; each rank scores its share."""
    pad = int(roles.actor.tokenizer.pad_token_id)
    mine = []
    for rows in micro_batches(rollout, range(len(rollout)), micro_batch_size=config.scoring_rows):
        batch = sequence_batch(rollout, rows, pad_token_id=pad)
        mine.append((rows, reward.scores(rollout, rows, batch, roles.actor.template).cpu()))
    scores_B = torch.zeros(len(rollout))
    for rows, part_B in (part for rank in distributed.gather_objects(mine) for part in rank):
        scores_B[rows] = part_B.float()
    return scores_B
