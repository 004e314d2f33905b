"""What stage 3 holds in memory and computes, for the plan. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.expected import expected_rows
from rlhf.hardware import Machine, cpu_has_bf16
from rlhf.memory.workload import Role, Rollout, Steps, Workload, role_of, step_count, workload_of
from rlhf.models.names import resolve
from rlhf.stage_config import NamedDtype, resolve_dtype
from rlhf.stages.problems import config_of
from rlhf.stages.spec import Models
from step3_ppo.config import PPOConfig


def workload(config: PPOConfig, models: Models, machine: Machine) -> Workload | None:
    """The memory and the work of the stage: actor, the models that score, the reference, which adapters make part of
    the actor, and a critic, which most estimators do without."""
    scorers = _scorers(config, models, machine)
    needed = {"actor_model", "reward_model"} if config.needs_reward_model else {"actor_model"}
    if not needed <= models.keys() or scorers is None:
        return None
    actor_config, reward_config = models["actor_model"], models.get("reward_model", {})
    of_actor, of_reward = config.actor_model, config.reward_model
    # models of other families read other tokens, so the critic cannot start from such a reward model
    alike = actor_config.get("model_type") == reward_config.get("model_type")
    from_reward = config.critic_from == "reward" or (config.critic_from == "auto" and alike)
    critic_config, of_critic = (reward_config, of_reward) if from_reward else (actor_config, of_actor)
    actor = role_of("actor", actor_config, config, machine, model=of_actor, adapters=True, average=config.ema)
    reference = role_of("reference", actor_config, config, machine, model=of_actor, trained=False)
    roles = (actor, *scorers) if config.lora_rank else (actor, reference, *scorers)
    if config.estimator.has_critic:
        critic = role_of("critic", critic_config, config, machine, model=of_critic, scalar=True)
        roles = (actor, critic, *roles[1:])
    prompts = max(config.rollout_batch_size // config.responses_per_prompt, 1)
    rows = expected_rows(config, stage=3) if config.iterations is None else config.iterations * prompts
    count = step_count(rows, prompts, most=config.max_steps)
    share, scored = (-(-n // machine.world_size) for n in (config.mini_batch_size, config.rollout_batch_size))
    mixed = config.ptx_length if config.ptx_data else 0  # all tokens of the pretraining text count
    return workload_of(
        roles,
        config,
        machine,
        tokens=max(config.max_prompt_length + config.max_response_length, mixed),
        counted=max(config.max_response_length, mixed),
        count=count,
        rollout=None if actor is None else _rollout(config, actor, machine),
        kept_rows=share if config.reuse_forward else 0,
        scored_rows=min(config.scoring_rows, scored),
        steps=Steps(count, config.rollout_batch_size, passes=config.ppo_epochs, unit="iteration"),
    )


def _scorers(config: PPOConfig, models: Models, machine: Machine) -> list[Role | None] | None:
    """The roles of the models that score, functions aside; None where one is not known yet."""
    named = [(reward.name, reward.target) for reward in config.rewards if reward.kind == "model"]
    if machine.described and any(not Path(resolve(name)).is_dir() for _, name in named):
        return None
    scoring = {name: (config_of(model), model) for name, model in named}
    if config.is_scored_by_model:
        scoring["reward model"] = (models.get("reward_model"), config.reward_model)
    found: list[Role | None] = []
    for name, (model, of) in scoring.items():
        if model is None:
            return None
        role = role_of("reward model", model, config, machine, model=of, trained=False, scalar=True)
        found.append(None if role is None else replace(role, name=name))
    return found


def _rollout(config: PPOConfig, actor: Role, machine: Machine) -> Rollout:
    training = resolve_dtype(config.dtype, gpus=machine.gpus, bf16=machine.bf16)
    dtype = _inference_dtype(config, training, machine)
    same = config.inference_tp_size == 1 and actor.zero_stage <= 2 and dtype == training and not actor.adapted
    rows = -(-config.rollout_batch_size // machine.world_size)
    return Rollout(
        role="actor",
        rows=min(rows, config.rollout_micro_batch_size or rows),
        prompt=config.max_prompt_length,
        response=config.max_response_length,
        dtype=dtype if config.inference_copy != "off" else training,
        copied=config.inference_copy == "on" or (config.inference_copy == "auto" and not same),
        parallel=config.inference_tp_size,
        released=config.release_inference_cache,
    )


def _inference_dtype(config: PPOConfig, training: NamedDtype, machine: Machine) -> NamedDtype:
    """As `inference_dtype_of` of the hybrid engine decides it where the model is."""
    if config.inference_dtype != "auto":
        return resolve_dtype(config.inference_dtype, gpus=machine.gpus, bf16=machine.bf16)
    if training == "fp16":
        return training
    return "bf16" if (machine.bf16 if machine.gpus else cpu_has_bf16()) else training
