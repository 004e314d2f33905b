"""Stage 3, step by step: prompts in, an actor that the reward model prefers out.

B sequences of the whole rollout batch, R response tokens.
"""

from __future__ import annotations

import math
import time

from data.batches import StepSampler
from data.stage_data import prompts
from rlhf import console
from rlhf.generation.drawing import Sampling
from rlhf.models.export import export, full_master
from rlhf.models.loading import load_tokenizer
from rlhf.stages.result import StageResult
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.stage_run import StageRun
from step3_ppo.advantages import KLController, normalise_scores
from step3_ppo.batches import prompts_of
from step3_ppo.calibration import calibrate
from step3_ppo.config import PPOConfig
from step3_ppo.diagnosis import Diagnosis
from step3_ppo.ema import EMA
from step3_ppo.experience import make_experience, rollout_metrics
from step3_ppo.gate import check_gate
from step3_ppo.held_out import write_held_out_prompts
from step3_ppo.optimise import optimise, steps_per_iteration
from step3_ppo.passes import ForwardPasses
from step3_ppo.pretraining_mix import load_pretraining_mix
from step3_ppo.rewards.listed import kept_of
from step3_ppo.roles import Actor, Roles, build_roles
from step3_ppo.rollout import generate
from step3_ppo.rollout_files import RolloutFiles, rollout_rows
from step3_ppo.start_checks import check_start

SHOWN = ("ppo/scores_mean", "ppo/kl", "ppo/response_length", "ppo/eos_rate")


def run(config: PPOConfig) -> StageResult:
    """Train the actor, export it with its moving average and its critic, and return its first and last figures.

    Raises ConfigError if the reward model does not pass the gate.
    """
    distributed.init(config.seed)
    check_gate(config)
    tokenizer = load_tokenizer(config.actor_model, trust_remote_code=config.trust_remote_code)
    data = prompts(config, Template(tokenizer), kept=kept_of(config))
    data.record(config.output_dir)
    write_held_out_prompts(data.held_out, config.output_dir)
    sampler = StepSampler(len(data.train), config.rollout_batch_size // config.responses_per_prompt, config.seed)
    total = config.iterations or sampler.steps_per_epoch
    total = min(total, config.max_steps or total)
    roles = build_roles(config, optimizer_steps=total * steps_per_iteration(config), tokenizer=tokenizer)
    template, reward, passes = roles.actor.template, roles.reward, ForwardPasses(roles, config)
    sampling = sampling_of(config, roles.actor)
    calibrate(roles, data.train, sampling, config)
    ptx = load_pretraining_mix(config, tokenizer)
    ema = EMA(roles.actor.engine, decay=config.ema_decay) if config.ema else None
    controller = KLController(config.kl_coef, config.adaptive_kl_target, config.adaptive_kl_horizon)
    diagnosis = Diagnosis(config)
    stage = StageRun(
        config,
        name=config.estimator.title,
        unit="iteration",
        total=total,
        engines=roles.engines,
        extras={"actor": {"ema": ema.average}} if ema is not None else {},
        sources=[*data.report["sources"], *(ptx.rows.report["sources"] if ptx is not None else ())],
        state={"steps": 0, "kl_coef": config.kl_coef, "first": {}, "last": {}, "signs": {}},
    )
    controller.kl_coef, diagnosis.shown = stage.state["kl_coef"], stage.state["signs"]
    rollouts = RolloutFiles(config.output_dir / "rollouts", every=config.save_rollouts_every, keep=config.keep_rollouts)
    rollouts.cut(after=stage.start)
    with stage.steps() as iterations:
        for iteration in iterations:
            began = time.monotonic()
            # 1 generate
            asked = prompts_of(data.train, sampler, iteration, repeats=config.responses_per_prompt)
            rollout = generate(roles.actor.hybrid, asked, sampling, config, iteration=iteration)
            generated = time.monotonic()
            # 2 score, by all roles
            m = passes.measure(rollout, iteration)
            # 3 final scores: normalised, less a penalty where no end token came
            scores_B = normalise_scores(
                m.scores_B,
                mean=reward.score_mean,
                std=reward.score_std,
                clip=math.inf if m.parts else config.score_clip,
            )
            scores_B = scores_B - config.missing_eos_penalty * (~rollout.stopped_B)
            # 4 shape rewards and estimate advantages, as the estimator does
            kl_coef = controller.kl_coef
            experience = make_experience(m, scores_B, config, kl_coef=kl_coef)
            controller.update(experience.kl_per_sequence, len(rollout))
            scored = time.monotonic()
            # 5 optimise
            steps, skipped = stage.state["steps"], roles.skipped_steps
            totals = optimise(
                experience, passes, config, iteration=iteration, steps_before=steps, kl_coef=kl_coef, ema=ema, ptx=ptx
            )
            ended = time.monotonic()
            # 6 record
            metrics = {
                **rollout_metrics(experience, group_size=config.group_size),
                **totals.means(),
                "ppo/kl_coef": kl_coef,
                "ppo/stopped_early": float(totals.stopped_early),
                "ppo/skipped_steps": roles.skipped_steps,
                "time/generate": generated - began,
                **roles.actor.hybrid.timings(),
                "time/score": scored - generated,
                "time/train": ended - scored,
                "perf/tokens_per_second": sum(map(len, rollout.responses)) / (ended - began),
            }
            if iteration == 0:
                stage.state["first"] = metrics
                check_start(metrics, totals.first, roles.actor.engine.dtype)
            rollouts.write(experience, template, iteration=stage.number, last=stage.is_last)
            for line in diagnosis.look(metrics):
                console.warn(f"iteration {stage.number}: {line}")
            stage.log(metrics, shown=SHOWN)
            # 7 save
            stage.state |= {"steps": steps + totals.steps, "kl_coef": controller.kl_coef}
            stage.state |= {"last": metrics, "signs": diagnosis.shown}
            stage.save(
                score=metrics["ppo/final_scores_mean"] if experience.is_finite() else None,
                skipped=roles.skipped_steps > skipped,
                rows=lambda e=experience: rollout_rows(e, template) if distributed.is_main() else (),
            )
    # 8 export
    first, last = stage.state["first"], stage.state["last"]
    told = (*SHOWN, *(name for name in last if name.startswith("ppo/reward/")))
    said = {n: last[n] for n in (*told, "ppo/explained_variance", "ppo/skipped_steps") if n in last}
    return StageResult(
        metrics={"ppo/scores_mean_first": first["ppo/scores_mean"], **said, "ppo/iterations": float(total)},
        models=export_models(config, roles, ema),
    )


def sampling_of(config: PPOConfig, actor: Actor) -> Sampling:
    """The settings of the sampling; warns if the log-probabilities are not those of the sampled distribution."""
    if config.top_p < 1 or config.top_k:
        console.warn(
            "top_p or top_k leaves tokens out: log-probabilities are those of the whole distribution, so KL is wrong"
        )
    return Sampling(
        max_new_tokens=config.max_response_length,
        min_new_tokens=config.min_response_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop_token_ids=actor.end_ids,
    )


def export_models(config: PPOConfig, roles: Roles, ema: EMA | None) -> dict[str, str]:
    """Write actor/, actor_ema/ and critic/, those that there are, as Hugging Face folders; their paths by label."""
    actor, critic = roles.actor, roles.critic
    models = {"actor": config.output_dir / "actor"}
    export(actor.engine.module.lm, models["actor"], tokenizer=actor.tokenizer)
    if ema is not None:
        models["actor_ema"] = config.output_dir / "actor_ema"
        with ema.in_place():
            export(actor.engine.module.lm, models["actor_ema"], tokenizer=actor.tokenizer, full_value=full_master)
    if critic is not None:
        models["critic"] = config.output_dir / "critic"
        export(critic.engine.module.model, models["critic"], tokenizer=critic.tokenizer)
    return {label: str(folder) for label, folder in models.items()}
