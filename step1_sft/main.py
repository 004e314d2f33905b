"""Stage 1, step by step: demonstrations in, a fine-tuned language model out."""

from __future__ import annotations

import time
from typing import Any

from data.batches import StepSampler
from data.stage_data import demonstrations
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
from step1_sft.config import SFTConfig
from step1_sft.loss import kept_rows, micro_batches, perplexity, token_loss_sum


def run(config: SFTConfig) -> StageResult:
    """Train, export the model to `output_dir/model`, and print its perplexity on held-out rows before and after."""
    distributed.init(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    pad = tokenizer.pad_token_id
    learn = "last" if config.train_on_prompt else config.learn  # there each conversation counts whole, in one row
    data = demonstrations(config, Template(tokenizer), packing=config.packing, learn=learn)
    data.record(config.output_dir)
    sampler = StepSampler(len(data.train), config.mini_batch_size, config.seed)
    total = sampler.steps_per_epoch * config.epochs
    total = min(total, config.max_steps or total)
    engine = build_engine(config, tokenizer, total_steps=total)
    stage = StageRun(config, name="SFT", total=total, engines={"model": engine}, sources=data.report["sources"])
    if stage.is_new:
        before = perplexity(engine, data.held_out, config, pad)
        console.say(f"held-out perplexity before training: {before:.3f}")
        stage.state = {"before": before, "after": before}
        stage.log({"sft/perplexity": before})
    with stage.steps() as steps:
        for step in steps:
            began = time.monotonic()
            # 1 this rank's rows of the step, in micro-batches
            batches = micro_batches(data.train, sampler.rows(step), config, pad)
            # 2 the counted tokens of all micro-batches and ranks: the loss is a mean over them
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
            evaluated = stage.is_due(config.eval_every)
            if evaluated:
                stage.state["after"] = metrics["sft/perplexity"] = perplexity(engine, data.held_out, config, pad)
            stage.log(metrics, shown=("sft/loss", "sft/perplexity"), always=evaluated)
            # 6 save
            stage.save(
                score=-stage.state["after"] if evaluated else None,
                skipped=done.skipped,
                rows=lambda kept=batches: kept_rows(kept),
            )
    before, after = stage.state["before"], stage.state["after"]
    console.say(f"held-out perplexity after training: {after:.3f}")
    # 7 export
    folder = config.output_dir / "model"
    export(engine.module.lm, folder, tokenizer=tokenizer)
    return StageResult(
        metrics={"sft/perplexity_before": before, "sft/perplexity": after, "sft/steps": float(total)},
        models={"sft": str(folder)},
    )


def build_engine(config: SFTConfig, tokenizer: Any, *, total_steps: int) -> TrainEngine:
    """The pretrained model, with adapters if they are set, ready to train for `total_steps`."""
    loading = Loading.of(config, config.model, tokenizer)
    lm = load_causal_lm(loading)
    if config.activation_checkpointing:
        enable_activation_checkpointing(lm)
    return TrainEngine(
        CausalModel(attach(lm, config)),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.learning_rate,
        total_steps=total_steps,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step1_sft",
    )
