"""Stage 1, step by step: demonstrations in, a fine-tuned language model out.

B rows of a micro-batch, T tokens, N counted tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from data.batches import StepSampler, deal
from data.collate import DemonstrationBatch, collate_demonstrations
from data.stage_data import demonstrations
from rlhf import console
from rlhf.metrics import MetricsLog
from rlhf.models.causal_model import CausalModel
from rlhf.models.export import export
from rlhf.models.loading import Loading, dtype_of, load_causal_lm, load_tokenizer
from rlhf.models.lora import attach
from rlhf.stage import StageResult
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.checkpoint import Checkpoints, save_when_due
from rlhf.training.engine import TrainEngine, default_zero_stage, enable_activation_checkpointing
from rlhf.training.guard import Guard
from rlhf.training.interrupt import noted
from step1_sft.config import SFTConfig


def run(config: SFTConfig) -> StageResult:
    distributed.init(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    data = demonstrations(config, Template(tokenizer), packing=config.packing)
    data.record(config.output_dir)
    loading = Loading(
        config.model,
        tokenizer,
        dtype=dtype_of(config.dtype),
        zero_stage=default_zero_stage() if config.zero_stage is None else config.zero_stage,
        no_dropout=config.no_dropout,
        trust_remote_code=config.trust_remote_code,
    )
    lm = load_causal_lm(loading)
    if config.activation_checkpointing:
        enable_activation_checkpointing(lm)
    lm = attach(lm, config)
    sampler = StepSampler(len(data.train), config.mini_batch_size, config.seed)
    total = sampler.steps_per_epoch * config.epochs
    total = min(total, config.max_steps or total)
    engine = TrainEngine(
        CausalModel(lm),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.learning_rate,
        total_steps=total,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step1_sft",
    )
    pad = tokenizer.pad_token_id
    sources = [source["fingerprint"] for source in data.report["sources"]]
    checkpoints = Checkpoints(config.output_dir / "checkpoints", keep=config.keep_checkpoints, sources=sources)
    resumed = checkpoints.latest()
    if resumed is None:
        start, before = 0, perplexity(engine, data.held_out, config, pad)
        after = before
        console.say(f"held-out perplexity before training: {before:.3f}")
    else:
        resumed.restore({"model": engine})
        start, before, after = resumed.step, resumed.state["before"], resumed.state["after"]
        console.say(f"resumed after step {start} of {total}")
    log = MetricsLog(
        config.output_dir,
        trackers=config.trackers,
        config=config.model_dump(mode="json"),
        resume_step=None if resumed is None else start,
    )
    if resumed is None:
        log.log(0, {"sft/perplexity": before})
    guard = Guard(config.output_dir / "bad_batches", limit=config.max_skipped_steps)
    with console.progress("SFT", total=total, start=start) as bar, noted() as interrupts:
        for step in range(start, total):
            began = time.monotonic()
            distributed.seed_step(config.seed, step)
            # 1 this rank's rows of the step, in micro-batches
            batches = micro_batches(data.train, sampler.rows(step), config, pad)
            # 2 what counts over all micro-batches and ranks: the loss is a mean over it
            (count,) = distributed.sum_over_ranks(sum(int(b.loss_mask_BT.sum()) for b in batches))
            # 3 forward and backward of each sum
            engine.train()
            loss_sum = 0.0
            for batch in batches:
                micro_sum = token_loss_sum(engine, batch)
                engine.backward(micro_sum, count=count)
                loss_sum += float(micro_sum.detach())
            # 4 one optimiser step
            done = engine.step()
            # 5 record
            (loss_sum,) = distributed.sum_over_ranks(loss_sum)
            seconds = time.monotonic() - began
            metrics = {
                "sft/loss": loss_sum / max(count, 1),
                "sft/grad_norm": done.grad_norm,
                "sft/learning_rate": done.learning_rate,
                "sft/skipped_steps": engine.steps_skipped,
                "time/step": seconds,
                "perf/tokens_per_second": count / seconds,
            }
            if step + 1 == total or (config.eval_every and (step + 1) % config.eval_every == 0):
                after = metrics["sft/perplexity"] = perplexity(engine, data.held_out, config, pad)
            if (step + 1) % config.log_every == 0 or "sft/perplexity" in metrics:
                log.log(step + 1, metrics)
            bar.update(step + 1, {k: metrics[k] for k in ("sft/loss", "sft/perplexity") if k in metrics})
            # 6 save
            save = partial(
                save_when_due,
                checkpoints,
                interrupts,
                step=step + 1,
                total=total,
                every=config.save_every,
                engines={"model": engine},
                state={"before": before, "after": after},
                score=-after if "sft/perplexity" in metrics else None,
            )
            guard.watch(
                step=step + 1,
                skipped=not done.applied,
                batch=lambda b=batches: kept_rows(b),
                save=partial(save, every=1),
            )
            save()
    log.close()
    console.say(f"held-out perplexity after training: {after:.3f}")

    folder = config.output_dir / "model"
    export(engine.module.lm, folder, tokenizer=tokenizer)
    return StageResult(
        metrics={"sft/perplexity_before": before, "sft/perplexity": after, "sft/steps": float(total)},
        models={"sft": str(folder)},
    )


def micro_batches(rows: Any, indices: Sequence[int], config: SFTConfig, pad: int) -> list[DemonstrationBatch]:
    """This rank's share of the rows; every rank gets equally many micro-batches, empty ones where rows run out."""
    parts = deal(
        indices,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batch_size=config.micro_batch_size,
        lengths=rows.lengths[list(indices)],
    )
    return [
        collate_demonstrations(
            [rows[index] for index in part], pad_token_id=pad, train_on_prompt=config.train_on_prompt
        )
        for part in parts
    ]


def kept_rows(batches: Sequence[DemonstrationBatch]) -> Iterator[dict[str, Any]]:
    """What the guard keeps of batches."""
    for batch in batches:
        for ids, mask in zip(batch.input_ids_BT.tolist(), batch.loss_mask_BT.tolist(), strict=True):
            yield {"input_ids": ids, "loss_mask": mask}


def token_loss_sum(engine: TrainEngine, batch: DemonstrationBatch) -> torch.Tensor:
    """Cross-entropy summed over the counted tokens, in nats."""
    device = distributed.device()
    packed = batch.packed_inputs(engine.dtype, device)
    scores = engine(batch.input_ids_BT.to(device), batch.loss_mask_BT.to(device), **packed)
    return -scores.logprobs_N.sum()


@torch.no_grad()
def perplexity(engine: TrainEngine, rows: Any, config: SFTConfig, pad: int) -> float:
    """exp(mean loss over all counted tokens of the held-out rows)."""
    engine.train(False)
    loss_sum, count = 0.0, 0
    for batch in micro_batches(rows, range(len(rows)), config, pad):
        loss_sum += float(token_loss_sum(engine, batch))
        count += int(batch.loss_mask_BT.sum())
    loss_sum, total = distributed.sum_over_ranks(loss_sum, count)
    return math.exp(loss_sum / total) if total else math.nan
