"""What can be said of stage 2's inputs before torch is loaded."""

from __future__ import annotations

from data import preflight
from rlhf.models.names import check_model, length_problems
from step2_reward.config import RewardConfig


def problems(config: RewardConfig) -> list[str]:
    """One line for each thing that is wrong with the model or the data."""
    found = check_model(config.model, flag="--model")
    longest = config.max_prompt_length + config.max_response_length
    return (found or length_problems(config.model, longest)) + preflight.problems(config, stage=2)
