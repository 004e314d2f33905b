"""DPO, step by step: pairs of chosen and rejected responses in, a language model that prefers as they do out.

B pairs of a micro-batch.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from data.batches import StepSampler
from data.stage_data import preferences
from rlhf import console
from rlhf.models.causal_model import CausalModel
from rlhf.models.export import export
from rlhf.models.loading import Loading, load_causal_lm, load_tokenizer
from rlhf.models.lora import attach
from rlhf.stages.result import StageResult
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine, enable_activation_checkpointing
from rlhf.training.stage_run import StageRun
from step2_dpo.batches import PairBatch, kept_rows, micro_batches, sums_of, token_logprobs
from step2_dpo.config import DPOConfig
from step2_dpo.evaluation import evaluate, pair_losses, ranked_by_reference, write_held_out_prompts
from step2_dpo.reference import Reference, reference_of

LOOK_AT = 1000  # pairs that are asked for margins


def run(config: DPOConfig) -> StageResult:
    """Train, export the model to `output_dir/model`, and print its figures on held-out pairs."""
    distributed.init(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    template, pad = Template(tokenizer), tokenizer.pad_token_id
    data = preferences(config, template)
    data.record(config.output_dir)
    write_held_out_prompts(config, template)
    sampler = StepSampler(len(data.train), config.mini_batch_size, config.seed)
    total = sampler.steps_per_epoch * config.epochs
    total = min(total, config.max_steps or total)
    engine = build_engine(config, tokenizer, total_steps=total)
    taken = sorted({row for step in range(min(total, sampler.steps_per_epoch)) for row in sampler.rows(step)})
    if any(data.train[row]["margin"] for row in taken[:LOOK_AT]):
        console.warn("the pairs have margins, which DPO does not use; the reward model of --method ppo does")
    # before a checkpoint is put back: until then the engine holds the reference's weights
    reference = reference_of(engine, data, taken, config, pad)
    stage = StageRun(config, name="DPO", total=total, engines={"model": engine}, sources=data.report["sources"])
    if stage.is_new:
        figures = evaluate(engine, data.held_out, reference, config, pad)
        before = ranked_by_reference(data.held_out, reference, config)
        console.say(f"held-out pairs in the right order by the reference's own log-probabilities: {before:.3f}")
        stage.state = {"before": before, "figures": figures}
        stage.log(figures)
    with stage.steps() as steps:
        for step in steps:
            began = time.monotonic()
            # 1 this rank's pairs of the step, in micro-batches
            batches = micro_batches(data.train, sampler.rows(step), config, pad)
            # 2 the pairs over all micro-batches and ranks: the loss is a mean over them
            (count,) = distributed.sum_over_ranks(sum(len(batch.rows) for batch in batches))
            # 3 forward and backward of each sum
            engine.train()
            loss_sum = right = margin = 0.0
            for batch in batches:
                rewards_B2 = pair_rewards(engine, batch, reference, config)
                z_B = rewards_B2[:, 0] - rewards_B2[:, 1]
                counts_B = torch.full_like(z_B, bool(batch.rows), dtype=torch.bool)
                micro_sum = torch.where(counts_B, pair_losses(z_B, config), 0.0).sum()
                engine.backward(micro_sum, count=count)
                loss_sum += float(micro_sum.detach())
                right += float(((z_B > 0) & counts_B).sum())
                margin += float(torch.where(counts_B, z_B.detach(), 0.0).sum())
            # 4 one optimiser step
            done = engine.step()
            # 5 record
            loss_sum, right, margin = distributed.sum_over_ranks(loss_sum, right, margin)
            metrics = {
                "dpo/loss": loss_sum / max(count, 1),
                "dpo/train_accuracy": right / max(count, 1),
                "dpo/train_margin": margin / max(count, 1),
                "dpo/grad_norm": done.grad_norm,
                "dpo/learning_rate": done.learning_rate,
                "dpo/skipped_steps": engine.steps_skipped,
                "time/step": time.monotonic() - began,
            }
            evaluated = stage.is_due(config.eval_every)
            if evaluated:
                stage.state["figures"] = evaluate(engine, data.held_out, reference, config, pad)
                metrics |= stage.state["figures"]
            stage.log(metrics, shown=("dpo/loss", "dpo/train_accuracy"), always=evaluated)
            # 6 save
            stage.save(
                score=stage.state["figures"]["dpo/accuracy"] if evaluated else None,
                skipped=done.skipped,
                rows=lambda kept=batches: kept_rows(kept),
            )
    figures = stage.state["figures"]
    console.table("DPO on held-out pairs", ["figure", "value"], [[name, value] for name, value in figures.items()])
    # 7 export
    folder = config.output_dir / "model"
    export(engine.module.lm, folder, tokenizer=tokenizer)
    return StageResult(
        metrics={"dpo/accuracy_before": stage.state["before"], **figures, "dpo/steps": float(total)},
        models={"dpo": str(folder)},
    )


def pair_rewards(engine: TrainEngine, batch: PairBatch, reference: Reference, config: DPOConfig) -> torch.Tensor:
    """β · log-ratio of the chosen and the rejected response of each pair, [B, 2]; of one pair of padding in an empty
    batch."""
    sums_B2 = sums_of(token_logprobs(engine, batch), batch)
    ref_B2 = reference.train_R2[batch.rows] if batch.rows else torch.zeros(1, 2)
    ratios_B2 = sums_B2 - ref_B2.to(sums_B2)
    if config.is_averaged:
        ratios_B2 = ratios_B2 / batch.lengths_B2.to(ratios_B2)
    return config.beta * ratios_B2


def build_engine(config: DPOConfig, tokenizer: Any, *, total_steps: int) -> TrainEngine:
    """The stage-1 model, with adapters if they are set, ready to train for `total_steps`. It has no dropout, so that
    nothing but training tells it from the reference."""
    loading = Loading.of(config, config.model, tokenizer, no_dropout=True)
    lm = load_causal_lm(loading)
    if config.activation_checkpointing:
        enable_activation_checkpointing(lm)
    return TrainEngine(
        CausalModel(attach(lm, config, dropout=0.0)),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.learning_rate,
        total_steps=total_steps,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step2_dpo",
    )
