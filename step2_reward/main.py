"""Stage 2, step by step: pairs of chosen and rejected responses in, a reward model out.

B pairs of a micro-batch.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from data.batches import StepSampler
from data.stage_data import preferences
from rlhf import console
from rlhf.errors import TrainingError
from rlhf.models.export import export
from rlhf.models.loading import Loading, load_tokenizer
from rlhf.models.lora import attach
from rlhf.models.scalar_model import HEAD, ScalarModel, load_scalar_model
from rlhf.stages.result import StageResult
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine, enable_activation_checkpointing
from rlhf.training.stage_run import StageRun
from step2_reward.config import RewardConfig
from step2_reward.loss import pairwise_losses
from step2_reward.scoring import evaluate, kept_rows, micro_batches, pair_scores


def run(config: RewardConfig) -> StageResult:
    """Train, export the model to `output_dir/model` with mean and spread of its scores, and print its held-out figures.

    Raises TrainingError for a model that gives every held-out response the same score.
    """
    distributed.init(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    pad = tokenizer.pad_token_id
    data = preferences(config, Template(tokenizer))
    data.record(config.output_dir)
    sampler = StepSampler(len(data.train), config.mini_batch_size, config.seed)
    total = sampler.steps_per_epoch * config.epochs
    total = min(total, config.max_steps or total)
    engine = build_engine(config, tokenizer, total_steps=total)
    stage = StageRun(
        config, name="reward model", total=total, engines={"model": engine}, sources=data.report["sources"]
    )
    if stage.is_new:
        figures, spread = evaluate(engine, data.held_out, config, pad)
        console.say(f"held-out accuracy before training: {figures['reward/accuracy']:.3f}")
        stage.state = {"before": figures["reward/accuracy"], "figures": figures, "spread": spread}
        stage.log(figures)
    with stage.steps() as steps:
        for step in steps:
            began = time.monotonic()
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
            evaluated = stage.is_due(config.eval_every)
            if evaluated:
                figures, spread = evaluate(engine, data.held_out, config, pad)
                stage.state |= {"figures": figures, "spread": spread}
                metrics |= figures
            stage.log(metrics, shown=("reward/loss", "reward/train_accuracy"), always=evaluated)
            # 6 save
            stage.save(
                score=stage.state["figures"]["reward/accuracy"] if evaluated else None,
                skipped=done.skipped,
                rows=lambda kept=batches: kept_rows(kept),
            )
    figures, (mean, std) = stage.state["figures"], stage.state["spread"]
    console.table("reward model on held-out pairs", ["figure", "value"], [[k, v] for k, v in figures.items()])
    # 7 normalise: stage 3 reads scores in units of their spread on held-out chosen responses
    if not std > 1e-6:
        raise TrainingError(
            f"the reward model gives every held-out response the same score (std {std:.1e}): it learned nothing; "
            "raise learning_rate or look at the data with python -m data.check"
        )
    # 8 export; the figures travel with the model: stage 3's gate reads them
    folder = config.output_dir / "model"
    normalised = {"score_mean": mean, "score_std": std}
    export(engine.module.model, folder, tokenizer=tokenizer, config_changes={**normalised, "held_out": figures})
    before = {"reward/accuracy_before": stage.state["before"]}
    return StageResult(
        metrics={**before, **figures, **normalised, "reward/steps": float(total)}, models={"reward": str(folder)}
    )


def build_engine(config: RewardConfig, tokenizer: Any, *, total_steps: int) -> TrainEngine:
    """The pretrained model with a new head, and with adapters if they are set, ready to train for `total_steps`."""
    loading = Loading.of(config, config.model, tokenizer)
    model = load_scalar_model(loading, new_head=True, seed=config.seed)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    return TrainEngine(
        ScalarModel(attach(model, config, keep_head=HEAD)),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.learning_rate,
        total_steps=total_steps,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step2_reward",
    )
