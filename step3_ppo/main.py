"""Stage 3, step by step: prompts in, an actor that the reward model prefers out."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from data.batches import StepSampler
from data.stage_data import pretraining, prompts
from rlhf import console
from rlhf.errors import ConfigError
from rlhf.files import write_text
from rlhf.generation.drawing import Sampling
from rlhf.metrics import MetricsLog
from rlhf.models.export import export, full_master
from rlhf.models.loading import load_tokenizer
from rlhf.stage import StageResult
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.checkpoint import Checkpoints, save_when_due
from rlhf.training.guard import Guard
from rlhf.training.interrupt import noted
from step3_ppo.advantages import KLController
from step3_ppo.config import PPOConfig
from step3_ppo.diagnosis import Diagnosis
from step3_ppo.ema import EMA
from step3_ppo.experience import figures, make_experience
from step3_ppo.gate import check_gate
from step3_ppo.optimise import PretrainingMix, Totals, first_rows, optimise, steps_per_iteration
from step3_ppo.roles import Roles, build_roles
from step3_ppo.rollout import roll_out
from step3_ppo.rollout_files import RolloutFiles, rollout_rows

INSTRUCT_GPT_PTX_COEF = 27.8
SAMPLER_MISMATCH_THAT_WARNS = 0.01
SHOWN = ("ppo/scores_mean", "ppo/kl", "ppo/response_length", "ppo/eos_rate")


def run(config: PPOConfig) -> StageResult:
    distributed.init(config.seed)
    check_gate(config)
    tokenizer = load_tokenizer(config.actor_model, trust_remote_code=config.trust_remote_code)
    data = prompts(config, Template(tokenizer))
    data.record(config.output_dir)
    write_held_out_prompts(data.held_out, config.output_dir)
    per_iteration = config.rollout_batch_size // config.responses_per_prompt  # prompts
    sampler = StepSampler(len(data.train), per_iteration, config.seed)
    iterations = config.iterations or sampler.steps_per_epoch
    iterations = min(iterations, config.max_steps or iterations)
    roles = build_roles(config, optimizer_steps=iterations * steps_per_iteration(config))
    ptx = _pretraining_mix(config, tokenizer)
    ema = EMA(roles.actor.engine, decay=config.ema_decay) if config.ema else None
    controller = KLController(config.kl_coef, config.adaptive_kl_target, config.adaptive_kl_horizon)
    sampling = Sampling(
        max_new_tokens=config.max_response_length,
        min_new_tokens=config.min_response_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop_token_ids=(roles.actor.template.end_token_id,),
    )
    if config.top_p < 1 or config.top_k:
        console.warn(
            "top_p or top_k cuts mass away: log-probabilities are those of the whole distribution, so KL is off"
        )

    read = [*data.report["sources"], *(ptx.rows.report["sources"] if ptx is not None else ())]
    sources = [source["fingerprint"] for source in read]
    checkpoints = Checkpoints(config.output_dir / "checkpoints", keep=config.keep_checkpoints, sources=sources)
    engines = {"actor": roles.actor.engine, "critic": roles.critic.engine}
    extras = {"actor": {"ema": ema.average}} if ema is not None else {}
    resumed = checkpoints.latest()
    diagnosis = Diagnosis(config)
    start, steps = 0, 0
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    if resumed is not None:
        resumed.restore(engines, extras)
        start, steps, controller.kl_coef = resumed.step, resumed.state["steps"], resumed.state["kl_coef"]
        first, last, diagnosis.shown = (resumed.state[name] for name in ("first", "last", "signs"))
        console.say(f"resumed after iteration {start} of {iterations}")
    rollouts = RolloutFiles(config.output_dir / "rollouts", every=config.save_rollouts_every, keep=config.keep_rollouts)
    rollouts.cut(after=start)
    log = MetricsLog(
        config.output_dir,
        trackers=config.trackers,
        config=config.model_dump(mode="json"),
        resume_step=None if resumed is None else start,
    )
    guard = Guard(config.output_dir / "bad_batches", limit=config.max_skipped_steps)
    with console.progress("PPO", total=iterations, unit="iteration", start=start) as bar, noted() as interrupts:
        for iteration in range(start, iterations):
            began = time.monotonic()
            # 1 generate
            rows = _prompt_rows(sampler, iteration, per_iteration)
            chosen = [data.train[row] for row in rows for _ in range(config.responses_per_prompt)]
            with roles.actor.hybrid.generating() as generator:
                rollout = roll_out(
                    generator,
                    [row["prompt_ids"] for row in chosen],
                    sampling,
                    messages=[row["messages"] for row in chosen],
                    seed=config.seed,
                    iteration=iteration,
                    micro_batch_size=config.rollout_micro_batch_size,
                )
            generated = time.monotonic()
            # 2 score, 3 shape rewards, 4 estimate advantages
            kl_coef = controller.kl_coef
            reuses = config.reuse_forward and iteration >= config.critic_warmup_iterations
            experience = make_experience(
                rollout, roles, config, kl_coef=kl_coef, first_step=first_rows(config, iteration) if reuses else ()
            )
            controller.update(experience.kl_per_sequence, len(rollout))
            scored = time.monotonic()
            # 5 optimise
            finite, skipped_before = experience.is_finite(), _skipped(roles)
            totals = Totals()
            if finite:
                totals = optimise(experience, roles, config, iteration=iteration, first_step=steps, ema=ema, ptx=ptx)
            else:
                experience.kept.clear()
                roles.actor.engine.skip_step()
            steps += totals.steps
            ended = time.monotonic()
            # 6 record
            tokens = sum(len(response) for response in rollout.responses)
            last = {
                **figures(experience),
                **totals.means(),
                "ppo/kl_coef": kl_coef,
                "ppo/stopped_early": float(totals.stopped_early),
                "ppo/skipped_steps": _skipped(roles),
                "time/generate": generated - began,
                **roles.actor.hybrid.figures(),
                "time/score": scored - generated,
                "time/train": ended - scored,
                "perf/tokens_per_second": tokens / (ended - began),
            }
            if iteration == 0:
                first = dict(last)
                _check_first(last, config, roles)
            if (iteration + 1) % config.log_every == 0 or iteration + 1 == iterations:
                log.log(iteration + 1, last)
            rollouts.write(experience, roles.actor.template, iteration=iteration + 1, last=iteration + 1 == iterations)
            for line in diagnosis.look(last):
                console.warn(f"iteration {iteration + 1}: {line}")
            bar.update(iteration + 1, {name: last[name] for name in SHOWN})
            # 7 save
            save = partial(
                save_when_due,
                checkpoints,
                interrupts,
                step=iteration + 1,
                total=iterations,
                every=config.save_every,
                engines=engines,
                extras=extras,
                state={
                    "steps": steps,
                    "kl_coef": controller.kl_coef,
                    "first": first,
                    "last": last,
                    "signs": diagnosis.shown,
                },
                score=last["ppo/final_scores_mean"] if finite else None,
            )
            guard.watch(
                step=iteration + 1,
                skipped=_skipped(roles) > skipped_before,
                batch=lambda e=experience: rollout_rows(e, roles.actor.template) if distributed.is_main() else (),
                save=partial(save, every=1),
            )
            save()
    log.close()

    models = _export(config, roles, ema)
    shown = {name: last[name] for name in (*SHOWN, "ppo/explained_variance", "ppo/skipped_steps")}
    return StageResult(
        metrics={"ppo/scores_mean_first": first["ppo/scores_mean"], **shown, "ppo/iterations": float(iterations)},
        models=models,
    )


def write_held_out_prompts(rows: Any, folder: Path) -> None:
    """The held-out prompts as JSONL, for the evaluation after the stage."""
    if distributed.is_main():
        lines = (json.dumps({"prompt": json.loads(row["messages"])}, ensure_ascii=False) for row in rows)
        write_text(folder / "held_out_prompts.jsonl", "".join(f"{line}\n" for line in lines))


def _skipped(roles: Roles) -> int:
    return roles.actor.engine.steps_skipped + roles.critic.engine.steps_skipped


def _prompt_rows(sampler: StepSampler, iteration: int, count: int) -> list[int]:
    """`count` prompts; the short last step of an epoch is filled from the next epoch's first."""
    rows = sampler.rows(iteration)
    epoch = iteration // sampler.steps_per_epoch
    while len(rows) < count:
        epoch += 1
        rows = rows + sampler.rows(epoch * sampler.steps_per_epoch)[: count - len(rows)]
    return rows


def _pretraining_mix(config: PPOConfig, tokenizer: object) -> PretrainingMix | None:
    if not config.ptx_data:
        return None
    rows = pretraining(config, tokenizer)  # type: ignore[arg-type]
    if not len(rows):
        raise ConfigError(f"step3_ppo.ptx_data {', '.join(config.ptx_data)}: no rows of text")
    coef = INSTRUCT_GPT_PTX_COEF if config.ptx_coef is None else config.ptx_coef
    return PretrainingMix(rows, StepSampler(len(rows), config.mini_batch_size, config.seed), coef)


def _check_first(first: dict[str, float], config: PPOConfig, roles: Roles) -> None:
    """On the first rollout actor and reference are the same model, and the first step's ratio is 1."""
    tolerance = 1e-5 if str(roles.actor.engine.dtype) == "torch.float32" else 2e-2
    checks = [("KL to the reference, nats per token", abs(first["ppo/kl_k1"]), tolerance)]
    if (
        "ppo/approx_kl" in first
        and first["ppo/approx_kl"] == first["ppo/approx_kl"]
        and steps_per_iteration(config) == 1
    ):
        checks.append(("approx_kl of the first step (ρ = 1)", abs(first["ppo/approx_kl"]), tolerance))
    checks.append(
        ("sampler against training weights, mean |Δp|", first["ppo/sampler_mismatch"], SAMPLER_MISMATCH_THAT_WARNS)
    )
    rows = [[name, f"{value:.2e}", f"{bound:.0e}", "✓" if value <= bound else "✗"] for name, value, bound in checks]
    console.table("checks of the first iteration", ["check", "value", "at most", ""], rows)
    console.say(f"scores of the first rollout: mean {first['ppo/scores_mean']:.3f}, std {first['ppo/scores_std']:.3f}")
    for name, value, bound in checks:
        if not value <= bound:
            console.warn(
                f"{name} is {value:.2e}, above {bound:.0e}: the roles do not agree as they should at the start"
            )


def _export(config: PPOConfig, roles: Roles, ema: EMA | None) -> dict[str, str]:
    """actor/, actor_ema/ and critic/ as Hugging Face folders."""
    actor, critic = roles.actor, roles.critic
    models = {"actor": config.output_dir / "actor", "critic": config.output_dir / "critic"}
    export(actor.engine.module.lm, models["actor"], tokenizer=actor.tokenizer)
    if ema is not None:
        models["actor_ema"] = config.output_dir / "actor_ema"
        with ema.in_place():
            export(actor.engine.module.lm, models["actor_ema"], tokenizer=actor.tokenizer, full_value=full_master)
    export(critic.engine.module.model, models["critic"], tokenizer=critic.tokenizer)
    return {label: str(folder) for label, folder in models.items()}
