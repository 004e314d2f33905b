"""Stage 3 as a value: its models, the checks of its inputs, its part of the report. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data import preflight
from rlhf.generation.lean_families import NORM_OFFSETS, unlean
from rlhf.hardware import Machine
from rlhf.models.families import sampling_problem
from rlhf.models.names import length_problems, origin, resolve
from rlhf.stages.spec import Chart, Headline, Layout, ModelInput, ModelOutput, Models, StageSpec
from step3_ppo.config import OTHER_TOKENS, PPOConfig
from step3_ppo.estimators import ESTIMATORS
from step3_ppo.gate import gate_problems
from step3_ppo.held_out import HELD_OUT_NAME
from step3_ppo.hybrid.parallel_sizes import parallel_problems
from step3_ppo.rewards.listed import evaluated_as, judge_problems, kept_of, listed_problems, needs_reward_model
from step3_ppo.workload import workload


def problems(config: PPOConfig, models: Models, machine: Machine) -> list[str]:
    """Problems with the models and the data, one line each."""
    found, longest = [], config.max_prompt_length + config.max_response_length
    for setting, name in (("actor_model", config.actor_model), ("reward_model", config.reward_model)):
        if setting in models:
            found += length_problems(models[setting], name, longest)
    if actor := models.get("actor_model"):
        for name, done in (("inference_compile", "compiled"), ("inference_cuda_graphs", "captured as graphs")):
            if getattr(config, name) and (what := unlean(actor)):
                found.append(
                    f"step3_ppo.{name}: sampling from a model {what} cannot be {done}, only from "
                    f"{', '.join(NORM_OFFSETS)} without windows; leave it out"
                )
        model = origin(actor, config.actor_model)
        if problem := sampling_problem(actor):
            found.append(f"step3_ppo.actor_model: {model} {problem}")
        found += parallel_problems(actor, model=model, size=config.inference_tp_size)
    if reward_model := models.get("reward_model"):
        found += gate_problems(reward_model, config)
    if config.estimator.has_critic and config.critic_from == "reward" and actor and reward_model:
        names = origin(actor, config.actor_model), origin(reward_model, config.reward_model)
        vocabularies = [_vocabulary(name) for name in names]
        if None not in vocabularies and vocabularies[0] != vocabularies[1]:
            found.append(OTHER_TOKENS)
    found += listed_problems(config, ask_hub=not machine.described)
    found += preflight.problems(config, stage=3, ask_hub=not machine.described, kept=kept_of(config))
    return found or judge_problems(config, models)


def _vocabulary(name: str) -> dict[str, int] | None:
    """The tokens of a model folder and their ids; None where its files do not tell."""
    try:
        tokenizer = json.loads((Path(resolve(name)) / "tokenizer.json").read_text(encoding="utf-8"))
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        return dict(tokenizer["model"]["vocab"]) | added
    except (OSError, ValueError, LookupError, TypeError):
        return None


def evaluation(config: PPOConfig) -> dict[str, Any]:
    """Settings of the evaluation on the prompts that the stage holds out."""
    return {"prompts": str(config.output_dir / HELD_OUT_NAME), "max_new_tokens": config.max_response_length}


def title(settings: Mapping[str, Any]) -> str:
    """What the trained actor is called: by the estimator that taught it."""
    return ESTIMATORS.get(settings.get("advantage_estimator", "gae"), ESTIMATORS["gae"]).title


def columns(config: PPOConfig) -> list[str]:
    """Columns of the data that rewards read."""
    kept = kept_of(config)
    return [] if kept is None else ["*"] if kept.everything else sorted(kept.names)


LAYOUT = Layout(
    "Stage 3: reinforcement learning",
    "iteration",
    (
        Chart("Score", ("ppo/scores_mean",), "mean of a rollout; of several rewards, their weighted sum"),
        Chart("Rewards", ("ppo/reward/*",), "mean of each reward's own scores of a rollout"),
        Chart("KL to the reference", ("ppo/kl",), "nats per sequence", floor=0),
        Chart("Response length", ("ppo/response_length",), "tokens", floor=0),
        Chart("Ended by the end token", ("ppo/eos_rate",), "share of responses", 0, 1),
        Chart("Explained variance", ("ppo/explained_variance",), "of the returns, by the critic; 1 is perfect", 0, 1),
        Chart(
            "Prompts that teach nothing", ("ppo/uniform_groups",), "all responses to them get the same score", floor=0
        ),
        Chart("Entropy", ("ppo/entropy",), "nats per token", floor=0),
        Chart("Actor loss", ("ppo/actor_loss",)),
        Chart("Critic loss", ("ppo/critic_loss",), floor=0),
        Chart("Pretraining loss", ("ppo/ptx_loss",), "nats per token of the pretraining mix"),
        Chart(
            "Policy change",
            ("ppo/approx_kl", "ppo/clipfrac"),
            "approximate KL in nats per token; share of clipped tokens (of sequences, with rloo)",
            0,
        ),
        Chart("KL in the loss", ("ppo/kl_loss",), "k3 in nats, averaged as the loss is", floor=0),
        Chart("KL coefficient", ("ppo/kl_coef",), floor=0, noisy=False),
        Chart("Gradient norms", ("ppo/grad_norm_actor", "ppo/grad_norm_critic"), "before clipping", floor=0),
        Chart("Seconds", ("time/generate", "time/score", "time/train", "time/flip"), "of an iteration", floor=0),
        Chart("Tokens per second", ("perf/tokens_per_second",), "generated, over the whole iteration", floor=0),
    ),
    results={
        "ppo/scores_mean_first": "first score",
        "ppo/scores_mean": "last score",
        "ppo/kl": "KL",
        "ppo/response_length": "length",
        "ppo/eos_rate": "ended",
    },
    headlines=(Headline("reward score in stage 3", "ppo/scores_mean", before="ppo/scores_mean_first"),),
)

SPEC = StageSpec(
    number=3,
    package="step3_ppo",
    config_class=PPOConfig,
    problems=problems,
    inputs=(
        ModelInput("actor_model", "language", "an actor", flags=("sft_model",), made_as="sft"),
        ModelInput(
            "reward_model",
            "reward",
            "a reward model",
            flags=("reward_model",),
            made_as="reward",
            needed=needs_reward_model,
        ),
    ),
    outputs=(
        ModelOutput("actor", "actor", of="actor_model", title=title),
        ModelOutput("actor_ema", "actor_ema", of="actor_model", title="EMA"),
        ModelOutput("critic", "critic", of="reward_model", kind="reward", made=lambda c: c.estimator.has_critic),
    ),
    layout=LAYOUT,
    evaluation=evaluation,
    judges=evaluated_as,
    workload=workload,
    columns=columns,
    methods=("ppo",),
)
