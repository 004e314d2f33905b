"""Stage 2, step by step: pairs of chosen and rejected responses in, a reward model out.

B pairs of a micro-batch, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from data.batches import StepSampler, deal
from data.collate import PreferenceBatch, collate_preferences
from data.stage_data import preferences
from rlhf import console
from rlhf.errors import TrainingError
from rlhf.metrics import MetricsLog
from rlhf.models.export import export
from rlhf.models.loading import Loading, dtype_of, load_tokenizer
from rlhf.models.lora import attach
from rlhf.models.scalar_model import HEAD, ScalarModel, load_scalar_model, values_at
from rlhf.stage import StageResult
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.checkpoint import Checkpoints, save_when_due
from rlhf.training.engine import TrainEngine, default_zero_stage, enable_activation_checkpointing
from rlhf.training.guard import Guard
from rlhf.training.interrupt import noted
from step2_reward.config import RewardConfig
from step2_reward.loss import pairwise_losses, report


def run(config: RewardConfig) -> StageResult:
    distributed.init(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    data = preferences(config, Template(tokenizer))
    data.record(config.output_dir)
    loading = Loading(
        config.model,
        tokenizer,
        dtype=dtype_of(config.dtype),
        zero_stage=default_zero_stage() if config.zero_stage is None else config.zero_stage,
        no_dropout=config.no_dropout,
        trust_remote_code=config.trust_remote_code,
    )
    model = load_scalar_model(loading, new_head=True, seed=config.seed)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    model = attach(model, config, keep_head=HEAD)
    sampler = StepSampler(len(data.train), config.mini_batch_size, config.seed)
    total = sampler.steps_per_epoch * config.epochs
    total = min(total, config.max_steps or total)
    engine = TrainEngine(
        ScalarModel(model),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.learning_rate,
        total_steps=total,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step2_reward",
    )
    pad = tokenizer.pad_token_id
    sources = [source["fingerprint"] for source in data.report["sources"]]
    checkpoints = Checkpoints(config.output_dir / "checkpoints", keep=config.keep_checkpoints, sources=sources)
    resumed = checkpoints.latest()
    if resumed is None:
        start, (figures, spread) = 0, evaluate(engine, data.held_out, config, pad)
        before = figures["reward/accuracy"]
        console.say(f"held-out accuracy before training: {before:.3f}")
    else:
        resumed.restore({"model": engine})
        start, before = resumed.step, resumed.state["before"]
        figures, spread = resumed.state["figures"], resumed.state["spread"]
        console.say(f"resumed after step {start} of {total}")
    log = MetricsLog(
        config.output_dir,
        trackers=config.trackers,
        config=config.model_dump(mode="json"),
        resume_step=None if resumed is None else start,
    )
    if resumed is None:
        log.log(0, figures)
    guard = Guard(config.output_dir / "bad_batches", limit=config.max_skipped_steps)
    with console.progress("reward model", total=total, start=start) as bar, noted() as interrupts:
        for step in range(start, total):
            began = time.monotonic()
            distributed.seed_step(config.seed, step)
            # 1 this rank's pairs of the step, in micro-batches
            batches = micro_batches(data.train, sampler.rows(step), config, pad)
            # 2 the pairs over all micro-batches and ranks: the loss is a mean over them
            (count,) = distributed.sum_over_ranks(sum(int(b.pair_mask_B.sum()) for b in batches))
            # 3 forward and backward of each sum
            engine.train()
            loss_sum = right = 0.0
            for batch in batches:
                chosen_B, rejected_B = pair_scores(engine, batch)
                losses_B = pairwise_losses(chosen_B, rejected_B, batch.margin_B.to(chosen_B))
                counts_B = batch.pair_mask_B.to(losses_B.device)
                micro_sum = torch.where(counts_B, losses_B, 0.0).sum()
                engine.backward(micro_sum, count=count)
                loss_sum += float(micro_sum.detach())
                right += float(((chosen_B > rejected_B) & counts_B).sum())
            # 4 one optimiser step
            done = engine.step()
            # 5 record
            loss_sum, right = distributed.sum_over_ranks(loss_sum, right)
            metrics = {
                "reward/loss": loss_sum / max(count, 1),
                "reward/train_accuracy": right / max(count, 1),
                "reward/grad_norm": done.grad_norm,
                "reward/learning_rate": done.learning_rate,
                "reward/skipped_steps": engine.steps_skipped,
                "time/step": time.monotonic() - began,
            }
            if step + 1 == total or (config.eval_every and (step + 1) % config.eval_every == 0):
                figures, spread = evaluate(engine, data.held_out, config, pad)
                metrics |= figures
            if (step + 1) % config.log_every == 0 or "reward/accuracy" in metrics:
                log.log(step + 1, metrics)
            bar.update(step + 1, {k: metrics[k] for k in ("reward/loss", "reward/train_accuracy")})
            # 6 save
            save = partial(
                save_when_due,
                checkpoints,
                interrupts,
                step=step + 1,
                total=total,
                every=config.save_every,
                engines={"model": engine},
                state={"before": before, "figures": figures, "spread": spread},
                score=figures["reward/accuracy"] if "reward/accuracy" in metrics else None,
            )
            guard.watch(
                step=step + 1,
                skipped=not done.applied,
                batch=lambda b=batches: kept_rows(b),
                save=partial(save, every=1),
            )
            save()
    log.close()
    console.table("reward model on held-out pairs", ["figure", "value"], [[k, v] for k, v in figures.items()])

    # 7 normalise: stage 3 reads scores in units of their spread on held-out chosen responses
    mean, std = spread
    if not std > 1e-6:
        raise TrainingError(
            f"the reward model gives every held-out response the same score (std {std:.1e}): it learned nothing; "
            "raise learning_rate or look at the data with python -m data.check"
        )
    folder = config.output_dir / "model"
    changes = {"score_mean": mean, "score_std": std}
    # the figures travel with the model: stage 3's gate reads them
    export(engine.module.model, folder, tokenizer=tokenizer, config_changes={**changes, "held_out": figures})
    return StageResult(
        metrics={"reward/accuracy_before": before, **figures, **changes, "reward/steps": float(total)},
        models={"reward": str(folder)},
    )


def micro_batches(rows: Any, indices: Sequence[int], config: RewardConfig, pad: int) -> list[PreferenceBatch]:
    """This rank's share of the pairs; every rank gets equally many micro-batches, empty ones where pairs run out."""
    parts = deal(
        indices,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batch_size=config.micro_batch_size,
        lengths=rows.lengths[list(indices)],
    )
    return [collate_preferences([rows[index] for index in part], pad_token_id=pad) for part in parts]


def kept_rows(batches: Sequence[PreferenceBatch]) -> Iterator[dict[str, Any]]:
    """What the guard keeps of batches: the chosen responses' rows, then the rejected ones'."""
    for batch in batches:
        for ids, last in zip(batch.input_ids_BT.tolist(), batch.last_B.tolist(), strict=True):
            yield {"input_ids": ids[: last + 1]}


def pair_scores(engine: TrainEngine, batch: PreferenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the chosen and of the rejected responses, [B] each: the head's output at the last counted token."""
    device = distributed.device()
    values_BT = engine(batch.input_ids_BT.to(device))
    pairs = len(batch.margin_B)
    scores = values_at(values_BT, batch.last_B.to(device))
    return scores[:pairs], scores[pairs:]


@torch.no_grad()
def evaluate(
    engine: TrainEngine, rows: Any, config: RewardConfig, pad: int
) -> tuple[dict[str, float], tuple[float, float]]:
    """Figures on held-out pairs, and mean and standard deviation of the scores of their chosen responses."""
    engine.train(False)
    indices = list(range(len(rows)))
    mine = []
    parts = deal(
        indices,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batch_size=config.micro_batch_size,
        lengths=rows.lengths[indices],
    )
    for part in parts:
        batch = collate_preferences([rows[i] for i in part], pad_token_id=pad)
        chosen_B, rejected_B = pair_scores(engine, batch)
        # an empty part has one row of padding, which `zip` leaves out
        mine += list(zip(part, chosen_B.tolist(), rejected_B.tolist(), strict=False))
    scored = sorted(item for rank in distributed.gather_objects(mine) for item in rank)
    chosen_B = torch.tensor([c for _, c, _ in scored])
    rejected_B = torch.tensor([r for _, _, r in scored])
    lengths = [len(rows[i]["chosen_ids"]) for i in indices] + [len(rows[i]["rejected_ids"]) for i in indices]
    figures = report(
        chosen_B,
        rejected_B,
        margins_B=torch.tensor([float(rows[i]["margin"] or 0.0) for i in indices]),
        lengths_2B=torch.tensor(lengths, dtype=torch.float64),
        sources=[rows[i]["source"] for i in indices],
    )
    return figures, (float(chosen_B.mean()), float(chosen_B.std(unbiased=False)))
