"""The rewards of `--reward`: what they need of models and data, and what is wrong with them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.kept import Kept
from rlhf.config import build_leniently
from rlhf.models.names import check_model, length_problems, read_config, resolve, template_problems
from rlhf.rewards.functions import look_at
from rlhf.rewards.names import TRAINED
from rlhf.rewards.signature import needed_columns
from step3_ppo.config import PPOConfig
from step3_ppo.gate import gate_problems


def needs_reward_model(settings: Mapping[str, Any]) -> bool:
    """Whether stage 3 with these settings, which may not be valid, starts from a trained reward model."""
    asked = {name: settings[name] for name in ("reward", "critic_from", "advantage_estimator") if name in settings}
    return build_leniently(PPOConfig, asked, where="")[0].needs_reward_model


def kept_of(config: PPOConfig) -> Kept | None:
    """The columns of the data that reward functions read; None without functions. A function that cannot be used reads
    none."""
    rewards = [reward for reward in config.rewards if reward.is_called]
    if not rewards:
        return None
    found, _ = look_at(rewards, seconds=config.reward_timeout)
    names, everything = needed_columns(found.values())
    needed = [(name, reward.flag) for reward in rewards if reward.name in found for name in found[reward.name].needs]
    return Kept(tuple(names), everything, tuple(needed))


def listed_problems(config: PPOConfig, *, ask_hub: bool = True) -> list[str]:
    """A line for each problem of the rewards' files, functions and models; of models of the hub with `ask_hub`."""
    found = look_at(config.rewards, seconds=config.reward_timeout)[1]
    longest = config.max_prompt_length + config.max_response_length
    for reward in config.rewards:
        name = config.reward_model if reward.kind == TRAINED else reward.target
        if reward.is_called or not (ask_hub or Path(resolve(name)).is_dir()):
            continue
        wrong = template_problems(name, flag="--reward")
        if reward.kind == "model":
            wrong += check_model(name, flag="--reward", kind="scorer", trust_remote_code=config.trust_remote_code)
        found += [line.replace(f"--reward {name}", reward.flag, 1) for line in wrong]
        if reward.kind == "model" and not wrong:
            found += length_problems(read_config(name), name, longest) + gate_problems(read_config(name), config)
    return found


def evaluated_as(config: PPOConfig) -> dict[str, Any]:
    """Settings of the evaluation with which the same rewards score the answers."""
    if not config.reward:
        return {"reward_model": config.reward_model}
    specs = [
        f"model:{config.reward_model}:{reward.weight:g}" if reward.kind == TRAINED else reward.spec
        for reward in config.rewards
    ]
    settings: dict[str, Any] = {"reward": specs}
    for name in ("reward_timeout", "run_generated_code"):
        if config.changed(name):
            settings[name] = getattr(config, name)
    return settings
