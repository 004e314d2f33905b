"""What can be said of stage 3's inputs before torch is loaded."""

from __future__ import annotations

from data import preflight
from rlhf.models.names import Kind, check_model, length_problems, read_config
from step3_ppo.config import PPOConfig
from step3_ppo.hybrid.parallel_sizes import parallel_problems


def problems(config: PPOConfig) -> list[str]:
    """One line for each thing that is wrong with the models or the data."""
    longest = config.max_prompt_length + config.max_response_length
    found = []
    roles: tuple[tuple[str, str, Kind], ...] = (
        (config.actor_model, "--actor-model", "language"),
        (config.reward_model, "--reward-model", "reward"),
    )
    for name, flag, kind in roles:
        wrong = check_model(name, flag=flag, kind=kind)
        found += wrong or length_problems(name, longest)
        if not wrong and kind == "language":
            found += parallel_problems(read_config(name), model=name, size=config.inference_tp_size)
    return found + preflight.problems(config, stage=3)
