"""What a stage holds and does, in the words of the plan: its models by role, the sequences of a step, its rollout.

A stage's `workload(config, models, machine)` says it; `phases.py` makes bytes of it and `effort.py` operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.hardware import Machine
from rlhf.memory.shapes import Shape, shape_of
from rlhf.memory.weights import backbone_in, count_adapters, count_weights, embedding_weights, weights_in
from rlhf.models.names import resolve
from rlhf.stage_config import BatchSettings, LoraSettings, NamedDtype, OptimizerSettings, RunSettings, resolve_dtype

BYTES: dict[NamedDtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Role:
    """A model of a stage: `weights` in all, of which `trained` are trained (0: it is only run).

    `scalar`: a reward model or critic, which has no output embedding. `average`: it has a moving average.
    """

    name: str
    shape: Shape
    weights: int
    trained: int
    zero_stage: int
    scalar: bool = False
    average: bool = False

    @property
    def adapted(self) -> bool:
        """Whether only adapters of it are trained."""
        return 0 < self.trained < self.weights


@dataclass(frozen=True)
class Rollout:
    """How a stage generates with one of its roles: `rows` sequences at once on a rank.

    `copied`: from a copy of its weights, cut over `parallel` ranks, in `dtype`. `released`: its memory is freed after
    each rollout.
    """

    role: str
    rows: int
    prompt: int
    response: int
    dtype: NamedDtype
    copied: bool
    parallel: int = 1
    released: bool = True


@dataclass(frozen=True)
class Steps:
    """How often a stage does what: optimiser steps (None: as many as there are rows for), sequences of one step, how
    many passes a step makes over them, and how many more without gradients (`looks`)."""

    count: int | None
    sequences: int
    passes: int = 1
    unit: str = "step"
    looks: int = 0


@dataclass(frozen=True)
class Workload:
    """A stage's roles, and one forward pass of it: `rows` sequences of `tokens` tokens on a rank, `counted` of which
    get a log-probability.

    `kept_rows`: sequences whose activations are kept at once, if more than those of one pass. `scored_rows`: sequences
    of a forward pass without gradients, 0 in a stage without such.
    """

    roles: tuple[Role, ...]
    dtype: NamedDtype
    rows: int
    tokens: int
    counted: int
    steps: Steps
    checkpointing: bool = False
    offload: bool = False
    factored: bool = False  # adafactor: its state is a row and a column of each matrix
    kept_rows: int = 0
    scored_rows: int = 0
    rollout: Rollout | None = None

    def role(self, name: str) -> Role:
        """The role of this name."""
        return next(role for role in self.roles if role.name == name)


def role_of(
    name: str,
    config: Mapping[str, Any],
    settings: RunSettings,
    machine: Machine,
    *,
    model: str = "",
    trained: bool = True,
    scalar: bool = False,
    adapters: bool = False,
    average: bool = False,
) -> Role | None:
    """A role of a stage from the config.json of its model; None for a config that does not tell its sizes.

    `model` is its name: where it is a folder with safetensors files, these are counted. `adapters`: with
    `lora_rank`, adapters of it are trained instead of its weights.
    """
    shape = shape_of(config)
    if shape is None:
        return None
    weights = count_weights(shape, scalar=scalar)
    if model and (folder := Path(resolve(model))).is_dir():
        weights = _counted(folder, shape, scalar=scalar) or weights
    count = weights if trained else 0
    if trained and adapters and isinstance(settings, LoraSettings) and settings.lora_rank:
        count = count_adapters(shape, settings.lora_rank, settings.lora_target_modules)
        weights += count
        count += shape.embed if scalar else 0  # the scalar head is trained whole
    zero_stage = settings.zero_stages(gpus=machine.gpus)[name]
    return Role(name, shape, weights, count, zero_stage, scalar, average)


def _counted(folder: Path, shape: Shape, *, scalar: bool) -> int | None:
    """The weights of a role whose model is in a folder: a language model's files may make a reward model."""
    body, whole = backbone_in(folder), weights_in(folder)
    if body is None or whole is None:
        return None
    if scalar:
        return body + shape.embed
    return body + (0 if shape.tied else embedding_weights(shape)) if whole == body + shape.embed else whole


def step_count(rows: int | None, batch: int, *, passes: int = 1, most: int | None = None) -> int | None:
    """Steps of `batch` rows in so many passes over the rows, `most` of them at most; None where nothing tells."""
    if rows is None:
        return most
    return min(-(-rows // batch) * passes, most or rows * passes)


def workload_of(
    roles: tuple[Role | None, ...],
    settings: RunSettings,
    machine: Machine,
    *,
    tokens: int,
    counted: int,
    count: int | None,
    sequences: int = 1,
    looks: int = 0,
    rollout: Rollout | None = None,
    kept_rows: int = 0,
    scored_rows: int = 0,
    steps: Steps | None = None,
) -> Workload | None:
    """The workload of a stage with the settings that stages share. `sequences` of a row of its batches: 2 for pairs.
    `looks`: passes of a step without gradients. None where a role is not known."""
    if not all(roles) or not isinstance(settings, BatchSettings) or not isinstance(settings, OptimizerSettings):
        return None
    rows = min(settings.micro_batch_size, -(-settings.mini_batch_size // machine.world_size))
    return Workload(
        roles=tuple(role for role in roles if role is not None),
        dtype=resolve_dtype(settings.dtype, gpus=machine.gpus, bf16=machine.bf16),
        rows=rows * sequences,
        tokens=tokens,
        counted=counted,
        steps=steps or Steps(count, settings.mini_batch_size * sequences, looks=looks),
        checkpointing=settings.activation_checkpointing,
        offload=settings.offload_optimizer,
        factored=settings.optimizer == "adafactor",
        kept_rows=kept_rows,
        scored_rows=scored_rows,
        rollout=rollout,
    )
