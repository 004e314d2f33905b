"""Settings that stages share, in groups; a stage's own config inherits the groups that it uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from rlhf import hardware
from rlhf.config import Config, setting

ZeroStage = Literal[0, 1, 2, 3]
NamedDtype = Literal["fp32", "bf16", "fp16"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


class RunSettings(Config):
    """Where a stage runs and what it writes."""

    # The models of the stage by role → the setting that holds its ZeRO stage: {"actor": "actor_zero_stage"}.
    trained_engines: ClassVar[dict[str, str]] = {}
    frozen_models: ClassVar[dict[str, str]] = {}
    help_groups: ClassVar = {
        "Models": ("trust_remote_code",),
        "Run": (
            *("output_dir", "seed", "dtype", "max_steps", "log_every", "save_every", "keep_checkpoints", "trackers"),
            *("max_skipped_steps", "no_dropout"),
        ),
    }

    output_dir: Path = setting(
        Path("output"), "folder of the stage: config, metrics, log, checkpoints, models", resumable=True
    )
    seed: int = setting(0, "seed of every random choice", ge=0)
    dtype: Dtype = setting("auto", "number format of training; auto: bf16 on GPUs that compute in it, else fp32")
    max_steps: int | None = setting(None, "largest number of optimiser steps of a stage (iterations of stage 3)", ge=1)
    log_every: int = setting(1, "number of steps between two rows of metrics", resumable=True, ge=1)
    save_every: int = setting(
        100, "number of steps between two checkpoints; the last step always has one", resumable=True, ge=1
    )
    keep_checkpoints: int = setting(
        2, "number of newest checkpoints to keep; the best one is also kept", resumable=True, ge=1
    )
    max_skipped_steps: int = setting(
        10,
        "number of steps in a row with a gradient that is not finite, after which the run ends",
        resumable=True,
        ge=1,
    )
    trackers: list[Literal["tensorboard", "wandb"]] = setting(
        [], "second destination of the metrics; repeatable", resumable=True
    )
    no_dropout: bool = setting(False, "training without dropout; always so beside a reference (PPO, DPO)")
    trust_remote_code: bool = setting(False, "permission to run code that comes with a model")

    @property
    def absent_roles(self) -> Collection[str]:
        """Roles that these settings do without: they are neither loaded nor trained."""
        return ()

    @property
    def unread(self) -> Mapping[str, str]:
        """Settings that have no effect beside the others → the setting that makes it so. `problems` refuses them. A
        plan leaves a recipe's out where a flag or --set made the choice."""
        return {}

    def method(self) -> str:
        """How the stage learns, for the plan; empty where there is nothing to choose."""
        return ""

    def engine_settings(self) -> dict[str, str]:
        """The trained roles that are there → the setting of each one's ZeRO stage."""
        return {role: field for role, field in self.trained_engines.items() if role not in self.absent_roles}

    def zero_stages(self, *, gpus: bool) -> dict[str, ZeroStage]:
        """The ZeRO stage of each model by its role, trained ones first: `{"actor": 2, "reference": 0}`."""
        there = {role: f for role, f in self.frozen_models.items() if role not in self.absent_roles}
        chosen = {role: getattr(self, field) for role, field in (self.engine_settings() | there).items()}
        return {role: default_zero_stage(gpus) if stage is None else stage for role, stage in chosen.items()}


class BatchSettings(Config):
    """The batch algebra: mini_batch_size = micro_batch_size × ranks × accumulation, which follows from the others."""

    help_groups: ClassVar = {"Batches": ("mini_batch_size", "micro_batch_size")}

    mini_batch_size: int = setting(32, "rows of one optimiser step, over all ranks", ge=1)
    micro_batch_size: int = setting(
        4, "rows of one forward pass on one rank; changes memory, not results", resumable=True, ge=1
    )

    def batch_problems(self, stage: str, world_size: int) -> list[str]:
        if self.mini_batch_size < world_size:
            return [
                f"{stage}.mini_batch_size={self.mini_batch_size} leaves some of the {world_size} ranks without a row; "
                f"use at least {world_size}, or fewer ranks"
            ]
        return []

    def batch_algebra(self, world_size: int) -> str:
        """`mini_batch_size 32 = 2 ranks × 4 micro-batches × 4 rows`."""
        rows = -(-self.mini_batch_size // world_size)
        size = min(self.micro_batch_size, rows)
        count = -(-rows // size)
        sign = "=" if world_size * count * size == self.mini_batch_size else "fills"
        return (
            f"mini_batch_size {self.mini_batch_size} {sign} {several(world_size, 'rank')} × "
            f"{several(count, 'micro-batch')} × {several(size, 'row')}"
        )


class OptimizerSettings(Config):
    """The optimiser and its schedule; learning rates belong to the stage."""

    help_groups: ClassVar = {
        "Optimiser": (
            *("optimizer", "lr_schedule", "warmup_ratio", "weight_decay", "gradient_clipping"),
            *("adam_beta1", "adam_beta2", "adam_eps"),
        ),
        "Memory and speed": ("activation_checkpointing", "offload_optimizer", "compile"),
    }

    optimizer: Literal["adamw", "adafactor"] = setting(
        "adamw", "optimiser; adafactor takes less memory and works at ZeRO stage 0 in fp32 only"
    )
    adam_beta1: float = setting(0.9, "decay of AdamW's running mean of the gradient", ge=0, lt=1)
    adam_beta2: float = setting(0.95, "decay of AdamW's running mean of the squared gradient", ge=0, lt=1)
    adam_eps: float = setting(1e-8, "number added to the denominator of AdamW's step", gt=0)
    weight_decay: float = setting(0.0, "decoupled weight decay; biases and norms have none", ge=0)
    gradient_clipping: float = setting(1.0, "largest norm of the gradient; 0: no clipping", ge=0)
    lr_schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "course of the learning rate after the warm-up"
    )
    warmup_ratio: float = setting(0.03, "share of the steps in which the learning rate rises from 0", ge=0, lt=1)
    activation_checkpointing: bool = setting(
        False, "activations computed again in the backward pass: less memory, a third slower", resumable=True
    )
    offload_optimizer: bool = setting(
        False, "optimiser state in CPU memory; needs ZeRO stage 1, 2 or 3", resumable=True
    )
    compile: bool = setting(
        False, "torch.compile of the layers of trained and frozen models; some 20 seconds to build", resumable=True
    )


class LoraSettings(Config):
    """Low-rank adapters through peft; rank 0 trains all weights."""

    help_groups: ClassVar = {
        "LoRA": ("lora_rank", "lora_alpha", "lora_learning_rate", "lora_dropout", "lora_target_modules")
    }

    lora_rank: int = setting(0, "rank of the LoRA adapters; 0: all weights are trained", ge=0)
    lora_alpha: float = setting(
        32.0, "scale of the adapters: what they add is multiplied by lora_alpha / lora_rank", gt=0
    )
    lora_dropout: float = setting(0.0, "dropout on the input of the adapters", ge=0, lt=1)
    lora_target_modules: list[str] = setting(
        ["all-linear"], "modules that get an adapter; all-linear: all that fit one, but the head; repeatable"
    )
    lora_learning_rate: float = setting(1e-4, "learning rate of the adapters, used when lora_rank > 0", gt=0)

    def lora_problems(self, stage: str, *, has_reference: bool = False) -> list[str]:
        """Settings of adapters without effect; with `has_reference` the stage compares the model with its reference,
        and so trains without dropout."""
        if self.lora_rank:
            if not (has_reference and self.changed("lora_dropout")):
                return []
            return [
                f"{stage}.lora_dropout is set but the model is compared with its reference, so it is trained without "
                "dropout: it has no effect; leave it out"
            ]
        return [
            f"{stage}.{name} is set but lora_rank is 0: it has no effect; set {stage}.lora_rank"
            for name in LoraSettings.model_fields
            if self.changed(name)
        ]


# --- dtype and ZeRO stage --------------------------------------------------------------------------------------------


def default_zero_stage(gpus: bool) -> ZeroStage:
    """The ZeRO stage of a trained model for which the settings name none."""
    return 2 if gpus else 1


def resolve_dtype(name: str, *, gpus: bool, bf16: bool) -> NamedDtype:
    """The dtype that a `dtype` setting stands for. `gpus`: the model is on a GPU; `bf16`: the GPUs multiply in it."""
    if name == "auto":
        return "bf16" if gpus and bf16 else "fp32"
    assert name in ("fp32", "bf16", "fp16"), name
    return name


def dtype_problems(name: str, *, where: str, gpus: bool, bf16: bool) -> list[str]:
    """Why this machine cannot compute in a dtype; `where` names the setting ("step1_sft.dtype")."""
    if name == "fp16" and not gpus:
        return [f"{where}=fp16 needs a GPU: on a CPU fp16 is slow and its kernels are incomplete; use bf16 or fp32"]
    if name == "bf16" and gpus and not bf16:
        return [f"{where}=bf16: these GPUs do not compute in bf16; use fp16 or fp32"]
    return []


def engine_problems(
    *, where: str, zero_stage: int, dtype: NamedDtype, optimizer: str, compile: bool, offload: bool
) -> list[str]:
    """What does not go together in one trained engine; `where` names its ZeRO stage ("step1_sft.zero_stage=1")."""
    found = []
    if optimizer == "adafactor" and (zero_stage != 0 or dtype != "fp32"):
        found.append(
            f"{where} with {dtype}: adafactor works at ZeRO-0 in fp32 only (ZeRO flattens weights, which undoes its "
            "factored state, and without ZeRO a bf16 or fp16 model has no fp32 weights); use ZeRO stage 0 and dtype "
            "fp32, or optimizer adamw"
        )
    elif dtype != "fp32" and zero_stage == 0:
        found.append(f"{where} with {dtype} drifts from fp32 (no fp32 weights are kept); use 1, or dtype fp32")
    if compile and zero_stage == 3:
        found.append(
            f"{where}: ZeRO-3 gathers weights while a layer runs, which compile cannot take in; use ZeRO stages 0 to 2"
        )
    if offload and zero_stage == 0:
        found.append(f"{where}: offload_optimizer needs ZeRO 1, 2 or 3; use 1")
    return found


def stage_engine_problems(config: RunSettings, stage: str, *, gpus: bool, bf16: bool) -> list[str]:
    """What of dtype, optimiser, ZeRO stages and compilation does not go together in a stage on this machine.

    `bf16` says whether its GPUs multiply in bf16.
    """
    found = dtype_problems(config.dtype, where=f"{stage}.dtype", gpus=gpus, bf16=bf16)
    if isinstance(config, OptimizerSettings):
        for role, field in config.engine_settings().items():
            zero_stage = config.zero_stages(gpus=gpus)[role]
            found += engine_problems(
                where=f"{stage}.{field}={zero_stage}",
                zero_stage=zero_stage,
                dtype=resolve_dtype(config.dtype, gpus=gpus, bf16=bf16),
                optimizer=config.optimizer,
                compile=config.compile,
                offload=config.offload_optimizer,
            )
    compiles = [name for name in ("compile", "inference_compile") if getattr(config, name, False)]
    if compiles and not gpus and (missing := hardware.missing_compiler()):
        found.append(
            f"{stage}.{compiles[0]}: there is no C++ compiler ({missing}) for what torch.compile writes; install g++"
        )
    return found


def several(count: int, noun: str) -> str:
    """`1 rank`, `2 ranks`, `3 micro-batches`."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count} {noun if count == 1 else plural}"
