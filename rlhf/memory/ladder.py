"""What makes a stage fit: changes of its settings, the cheapest first, and the first of them that is enough.

Each change is tried alone, in the order of `LADDER`; if none is enough, they are added up in the same order. A setting
that was typed as a flag or with --set is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.hardware import Machine
from rlhf.memory.workload import Workload
from rlhf.stage_config import RunSettings

Changes = dict[str, Any]
# Settings of the sampling that weights which ZeRO-3 gathers do not allow.
OF_WHOLE_WEIGHTS = ("inference_compile", "inference_cuda_graphs")


@dataclass(frozen=True)
class Rung:
    """One change: what it costs, and the settings of a stage that it changes (none if it does not apply)."""

    name: str
    cost: str
    changes: Callable[[RunSettings, Workload, Machine], list[Changes]]


def _has(config: RunSettings, name: str) -> bool:
    return name in type(config).model_fields


def _off(config: RunSettings, *names: str) -> Changes:
    """Those of the settings that are on, switched off."""
    return {name: False for name in names if getattr(config, name, False)}


def _checkpointing(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    return [] if work.checkpointing else [{"activation_checkpointing": True}]


def _smaller(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    """Fewer rows a pass: halves down to one; fewer responses at once."""
    size = int(getattr(config, "micro_batch_size", 1))
    scoring = getattr(config, "scoring_micro_batch_size", None)
    halves: list[Changes] = []
    while scoring and scoring > size:  # nothing is learned in these passes, so they are the first to become smaller
        scoring = max(scoring // 2, size)
        halves.append({"scoring_micro_batch_size": scoring})
    while size > 1:
        size //= 2
        halves.append({"micro_batch_size": size})
        if scoring:
            halves.append({"micro_batch_size": size, "scoring_micro_batch_size": min(scoring, size)})
    return halves


def _sharded(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    if machine.world_size == 1:
        return []
    stages = config.zero_stages(gpus=machine.gpus)
    frozen = {field: 3 for role, field in config.frozen_models.items() if stages.get(role, 3) != 3}
    two = {field: 2 for role, field in config.engine_settings().items() if stages[role] < 2}
    three = {field: 3 for role, field in config.engine_settings().items() if stages[role] < 3}
    off = _off(config, "compile", "reuse_forward")
    if getattr(config, "inference_copy", "auto") == "off":
        off |= _off(config, *OF_WHOLE_WEIGHTS)
    return [change for change in (two, frozen, {**three, **off}, {**frozen, **three, **off}) if change]


def _released(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    return [] if not work.rollout or work.rollout.released else [{"release_inference_cache": True}]


def _cut(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    if not work.rollout or not _has(config, "inference_tp_size"):
        return []
    s = work.role(work.rollout.role).shape
    return [
        {"inference_tp_size": size, **_off(config, "inference_cuda_graphs")}
        for size in (2, 4, 8)
        if size > work.rollout.parallel and not (machine.ranks % size or s.heads % size or s.kv_heads % size)
    ]


def _offload(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    if work.offload or work.factored or not machine.gpus:
        return []
    stages = config.zero_stages(gpus=True)
    low = {field: 2 for role, field in config.engine_settings().items() if stages[role] < 1}
    return [{"offload_optimizer": True, **low}]


def _adapters(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    off = _off(config, "compile")
    return [{"lora_rank": 64, **off}] if _has(config, "lora_rank") and not getattr(config, "lora_rank", 0) else []


def _uncopied(config: RunSettings, work: Workload, machine: Machine) -> list[Changes]:
    if not work.rollout or not work.rollout.copied or not _has(config, "inference_copy"):
        return []
    return [{"inference_copy": "off", "inference_tp_size": 1, **_off(config, *OF_WHOLE_WEIGHTS)}]


LADDER = (
    Rung("memory of the rollout freed after it", "the copy is allocated again, and graphs are captured", _released),
    Rung("activation checkpointing", "a third more time for training", _checkpointing),
    Rung("a smaller micro-batch", "less work at a time for each GPU", _smaller),
    Rung("ZeRO", "more traffic between the ranks", _sharded),
    Rung("tensor parallelism of the inference copy", "more traffic for each token", _cut),
    Rung("offloading", "a slower step", _offload),
    Rung(
        "no inference copy", "tokens are generated with the training weights: slower, at ZeRO 3 many times", _uncopied
    ),
    Rung("LoRA", "adapters are trained instead of all weights", _adapters),
)


def candidates(config: RunSettings, work: Workload, machine: Machine, *, typed: Collection[str]) -> Iterator[Changes]:
    """Changes to try, in order: each alone, then added up. `typed` settings stay as they are."""
    steps = [
        [change for change in rung.changes(config, work, machine) if not change.keys() & set(typed)] for rung in LADDER
    ]
    for step in steps:
        yield from step
    together: Changes = {}
    for step in steps:
        for change in step:
            yield {**together, **change}
        if step:
            together |= step[-1]
