"""DPO and its relatives, step by step: pairs, or responses that are good or bad, in; a language model that prefers as
they do out."""

from __future__ import annotations

import time
from typing import Any

from data.batches import StepSampler
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
from step2_dpo.batches import kept_rows
from step2_dpo.config import DPOConfig
from step2_dpo.evaluation import write_held_out_prompts
from step2_dpo.pairs import Pairs
from step2_dpo.responses import Responses


def run(config: DPOConfig) -> StageResult:
    """Train, export the model to `output_dir/model`, and print its figures on held-out rows."""
    distributed.init(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    template, pad = Template(tokenizer), tokenizer.pad_token_id
    learned = (Responses if config.loss == "kto" else Pairs)(config, template, pad)
    data = learned.data
    data.record(config.output_dir)
    write_held_out_prompts(config, template)
    sampler = StepSampler(len(data.train), config.mini_batch_size, config.seed)
    total = sampler.steps_per_epoch * config.epochs
    total = min(total, config.max_steps or total)
    engine = build_engine(config, tokenizer, total_steps=total)
    # before a checkpoint is put back: until then the engine holds the reference's weights
    learned.keep_reference(engine, sampler, total)
    stage = StageRun(config, name=config.title, total=total, engines={"model": engine}, sources=data.report["sources"])
    if stage.is_new:
        figures = learned.evaluate(engine)
        state: dict[str, Any] = {"figures": figures}
        if (before := learned.ranked_by_reference()) is not None:
            console.say(
                f"held-out {learned.unit}s in the right order by the reference's own log-probabilities: {before:.3f}"
            )
            state["before"] = before
        stage.state = state
        stage.log(figures)
    with stage.steps() as steps:
        for step in steps:
            began = time.monotonic()
            # 1 this rank's pairs or responses of the step, in micro-batches
            rows = sampler.rows(step)
            batches = learned.micro_batches(rows)
            # 2 their number over all micro-batches and ranks: the loss is a mean over them
            (count,) = distributed.sum_over_ranks(sum(len(batch.rows) for batch in batches))
            # 3 what the whole step is compared with (KTO's z0)
            baseline = learned.baseline(engine, step, rows)
            # 4 forward and backward of each sum
            engine.train()
            sums: dict[str, float] = {}
            for batch in batches:
                micro_sum, figures = learned.losses(engine, batch, baseline)
                engine.backward(micro_sum, count=count)
                for name, value in {"dpo/loss": float(micro_sum.detach()), **figures}.items():
                    sums[name] = sums.get(name, 0.0) + value
            # 5 one optimiser step
            done = engine.step()
            # 6 record
            over_ranks = distributed.sum_over_ranks(*sums.values())
            metrics = {name: total_sum / max(count, 1) for name, total_sum in zip(sums, over_ranks, strict=True)}
            metrics |= {
                **({"dpo/baseline": baseline} if config.loss == "kto" else {}),
                "dpo/grad_norm": done.grad_norm,
                "dpo/learning_rate": done.learning_rate,
                "dpo/skipped_steps": engine.steps_skipped,
                "time/step": time.monotonic() - began,
            }
            evaluated = stage.is_due(config.eval_every)
            if evaluated:
                stage.state["figures"] = learned.evaluate(engine)
                metrics |= stage.state["figures"]
            stage.log(metrics, shown=("dpo/loss", "dpo/train_accuracy"), always=evaluated)
            # 7 save
            stage.save(
                score=stage.state["figures"].get("dpo/accuracy") if evaluated else None,
                skipped=done.skipped,
                rows=lambda kept=batches: kept_rows(kept),
            )
    figures = stage.state["figures"]
    rows_of_table = [[name, value] for name, value in figures.items()]
    console.table(f"{config.title} on held-out {learned.unit}s", ["figure", "value"], rows_of_table)
    # 8 export
    folder = config.output_dir / "model"
    export(engine.module.lm, folder, tokenizer=tokenizer)
    before = {"dpo/accuracy_before": stage.state["before"]} if "before" in stage.state else {}
    return StageResult(metrics={**before, **figures, "dpo/steps": float(total)}, models={"dpo": str(folder)})


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
