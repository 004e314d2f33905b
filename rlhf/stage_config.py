"""Settings that stages share, in groups; a stage's own config inherits the groups that it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlhf.config import Config, setting

ZeroStage = Literal[0, 1, 2, 3]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


class RunSettings(Config):
    """Where a stage runs and what it writes."""

    output_dir: Path = setting(Path("output"), "the stage's folder: config, metrics, log, checkpoints, models")
    seed: int = setting(0, "of every random choice: same seed, same metrics", ge=0)
    dtype: Dtype = setting("auto", "of training: auto is bf16 on a GPU that has it, else fp32")
    max_steps: int | None = setting(None, "stop after this many optimiser steps (iterations in stage 3)", ge=1)
    log_every: int = setting(1, "write metrics every this many steps", resumable=True, ge=1)
    trackers: list[Literal["tensorboard", "wandb"]] = setting([], "also send metrics there", resumable=True)
    no_dropout: bool = setting(False, "set the model's dropouts to 0 (always so in stage 3)")
    trust_remote_code: bool = setting(False, "run code that comes with a model")


class BatchSettings(Config):
    """The batch algebra: mini_batch_size = micro_batch_size × ranks × accumulation, the last one being worked out."""

    mini_batch_size: int = setting(32, "rows of one optimiser step, over all ranks", ge=1)
    micro_batch_size: int = setting(4, "rows of one forward on one rank; changes memory, not results", ge=1)


class OptimizerSettings(Config):
    """The optimiser and its schedule; learning rates belong to the stage."""

    optimizer: Literal["adamw", "adafactor"] = setting("adamw", "adafactor is the memory-lean choice (ZeRO-0 only)")
    adam_beta1: float = setting(0.9, "decay of the gradient's running mean", ge=0, lt=1)
    adam_beta2: float = setting(0.95, "decay of the squared gradient's running mean", ge=0, lt=1)
    adam_eps: float = setting(1e-8, "added to the denominator", gt=0)
    weight_decay: float = setting(0.0, "decoupled; biases and norms are left out", ge=0)
    gradient_clipping: float = setting(1.0, "largest norm of the gradient; 0 is off", ge=0)
    lr_schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "after the warm-up")
    warmup_ratio: float = setting(0.03, "share of the steps in which the rate rises from 0", ge=0, lt=1)
    activation_checkpointing: bool = setting(False, "recompute activations in backward: less memory, a third slower")
    offload_optimizer: bool = setting(False, "keep the optimiser's state in CPU memory (ZeRO 1-3)")
    compile: bool = setting(False, "torch.compile the trained model")


class LoraSettings(Config):
    """Low-rank adapters through peft; rank 0 trains all weights."""

    lora_rank: int = setting(0, "rank of the adapters; 0 trains all weights", ge=0)
    lora_alpha: float = setting(32.0, "the adapters' delta is scaled by lora_alpha / lora_rank", gt=0)
    lora_dropout: float = setting(0.0, "on the adapters' input", ge=0, lt=1)
    lora_target_modules: list[str] = setting(
        ["all-linear"], "module names that get an adapter; all-linear takes every one but the head"
    )
    lora_learning_rate: float = setting(1e-4, "takes the place of the learning rate when lora_rank > 0", gt=0)

    def lora_problems(self, stage: str) -> list[str]:
        if self.lora_rank == 0 and self.changed("lora_learning_rate"):
            return [f"{stage}.lora_learning_rate is set but lora_rank is 0: it has no effect; set {stage}.lora_rank"]
        return []
