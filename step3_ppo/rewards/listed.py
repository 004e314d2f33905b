"""The rewards of `--reward`: what they need of models and data, and what is wrong with them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.kept import Kept
from data.preflight import unusual_prompts
from rlhf.config import build_leniently
from rlhf.errors import ModelError
from rlhf.models.names import check_model, length_problems, origin, read_config, resolve, template_problems
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


def judge_problems(config: PPOConfig, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each reward model with a template of its own that cannot render prompts of stage 3: one that refuses a
    turn of the system, or does not write calls of tools. `models` are the config.json of those that stages make."""
    trained = origin(models.get("reward_model", {}), config.reward_model)
    judges = {reward.flag: reward.target for reward in config.rewards if reward.kind == "model"}
    if config.is_scored_by_model:
        judges["reward_model"] = trained
    actor = origin(models.get("actor_model", {}), config.actor_model)
    judges = {flag: name for flag, name in judges.items() if name != actor and Path(resolve(name)).is_dir()}
    prompts = unusual_prompts(config) if judges else {}
    if not prompts:
        return []
    from rlhf.models.loading import load_tokenizer  # torch, transformers
    from rlhf.models.reward_model import same_tokens
    from rlhf.template import Template

    def template_of(name: str) -> Template:
        return Template(load_tokenizer(name, trust_remote_code=config.trust_remote_code))

    found, of_actor = [], template_of(actor) if Path(resolve(actor)).is_dir() else None
    for flag, name in judges.items():
        template = template_of(name)
        if of_actor and same_tokens(of_actor, template):  # then it reads the actor's tokens
            continue
        for place, prompt in prompts.items():
            try:
                template.render(prompt)
            except ModelError as error:
                found.append(f"{flag}: {name} cannot read the prompt of {place}: {error}; leave such rows out")
                break
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
