"""Bytes of each phase of a stage on one rank, and in the main memory of a machine. GB are 10⁹ bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf.hardware import Machine
from rlhf.memory.activations import PRODUCT_TOKENS, backward_bytes, cache_bytes, head_bytes, kept_bytes, prefill_bytes
from rlhf.memory.engines import Held, held, largest_module, largest_weight
from rlhf.memory.weights import embedding_weights
from rlhf.memory.workload import BYTES, Role, Rollout, Workload

# Bytes of a process beside its tensors: CUDA's context, and with several ranks NCCL's communicators; on a CPU Python
# with its libraries.
CONTEXT, COMMUNICATORS, PROCESS = 0.6e9, 1.4e9, 0.62e9
CACHE_SHARE = 0.6  # of the free memory, for keys and values; as in step3_ppo/hybrid/engine.py, which a test compares


@dataclass(frozen=True)
class Phase:
    """One phase: bytes of each role, and of what is held beside them, by name."""

    name: str
    roles: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def total(self) -> float:
        return sum(self.roles.values()) + sum(self.beside.values())


@dataclass(frozen=True)
class StageMemory:
    """All phases of a stage on a rank; bytes in the main memory of a machine by phase; bytes of a checkpoint."""

    phases: tuple[Phase, ...]
    host: Mapping[str, float]
    checkpoint: float
    model: float  # bytes of the exported folders

    @property
    def largest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


def stage_memory(work: Workload, machine: Machine, *, capacity: float = 0.0) -> StageMemory:
    """The phases of a stage. `capacity`: bytes of a GPU, which decide into how many groups a rollout is cut, as the
    sampler does; 0: not known, one group."""
    item, ranks, gpu = BYTES[work.dtype], machine.world_size, machine.gpus
    of = {
        role.name: held(role, item=item, ranks=ranks, gpu=gpu, offload=work.offload, factored=work.factored)
        for role in work.roles
    }
    stays = {name: each.stays for name, each in of.items()}
    if not gpu and work.offload:  # "main memory" is where everything is
        stays = {name: each.stays + each.host for name, each in of.items()}
    base = {"process": (CONTEXT + (COMMUNICATORS if ranks > 1 else 0.0)) if gpu else PROCESS}
    trained = [role for role in work.roles if role.trained]
    phases = [_load(work, of, stays, base)]
    if work.rollout:
        rollout = _rollout(work, stays, base, machine, capacity)
        phases.append(rollout)
        if not work.rollout.released:
            base |= {name: rollout.beside[name] for name in ("copy", "cache") if name in rollout.beside}
        phases.append(_score(work, of, stays, base, machine))
    for role in trained:
        phases += _training(work, role, of, stays, base, machine)
    phases.append(_export(work, stays, base))
    return StageMemory(
        tuple(phases),
        _host(work, of, machine),
        checkpoint=sum((16.0 if role.average else 12.0) * role.trained for role in trained),
        model=sum(item * role.weights * (2 if role.average else 1) for role in trained),
    )


def _load(work: Workload, of: Mapping[str, Held], stays: Mapping[str, float], base: Mapping[str, float]) -> Phase:
    """While the models are built there is no optimiser state yet. A reference is loaded first, then each trained model,
    which needs more for a moment, then models that score; the moving average is made last."""
    end = {name: stays[name] - each.means for name, each in of.items()}
    there = sum(end[role.name] for role in work.roles if not role.trained and not role.scalar)
    most = sum(end.values())
    moment = most
    for role in (role for role in work.roles if role.trained):
        there += end[role.name] - of[role.name].average
        moment = max(moment, there + of[role.name].build)
    return Phase("load", end, {**base, **({"building": moment - most} if moment > most else {})})


def _rollout(
    work: Workload, stays: Mapping[str, float], base: Mapping[str, float], machine: Machine, capacity: float
) -> Phase:
    r = work.rollout
    assert r is not None
    role, item = work.role(r.role), BYTES[r.dtype]
    beside = {**base}
    if r.copied:
        beside["copy"] = copy_bytes(role, r)
    one = cache_bytes(role.shape, item, -(-(r.prompt + r.response) // 32) * 32)
    whole = r.rows * one
    budget = CACHE_SHARE * max(capacity - sum(stays.values()) - sum(beside.values()), 0.0)
    size = max(min(whole, budget) if capacity else whole, one)  # at least one sequence goes through at a time
    groups = -(-whole // size)
    beside["cache"] = size
    # tensor-parallel ranks read the prompts of their group together
    reading = prefill_bytes(role.shape, item, r.rows * r.parallel, r.prompt)
    beside["prompts"] = max(reading, largest_module(role, BYTES[work.dtype]) - beside["cache"] if r.copied else 0.0)
    note = f"in {groups:.0f} groups, as the cache does not fit at once" if groups > 1 else ""
    return Phase("rollout", stays, beside, note)


def copy_bytes(role: Role, rollout: Rollout) -> float:
    """Bytes of the inference copy on a rank: its layers are cut, its embeddings are not. Adapters are merged."""
    weights = role.weights - (role.trained if role.adapted else 0)
    whole = embedding_weights(role.shape) * (1 if role.shape.tied else 2)
    return BYTES[rollout.dtype] * ((weights - whole) / rollout.parallel + whole)


def _score(
    work: Workload, of: Mapping[str, Held], stays: Mapping[str, float], base: Mapping[str, float], machine: Machine
) -> Phase:
    item = BYTES[work.dtype]
    gathered = sorted((each.forward for each in of.values()), reverse=True)
    heads = [role.shape for role in work.roles if not role.scalar]
    rows = max(work.scored_rows, work.rows if work.kept_rows else 1)
    head = max(head_bytes(s, item, rows * work.counted, trained=False, gpu=machine.gpus) for s in heads)
    layer = max(backward_bytes(role.shape, item, rows, work.tokens) for role in work.roles)
    beside = {**base, "gathered": sum(gathered[:2]), "activations": head + layer}
    if work.kept_rows:
        beside["kept"] = sum(_kept(work, role, machine, work.kept_rows) for role in work.roles if role.trained)
    return Phase("score", stays, {name: size for name, size in beside.items() if size})


def _kept(work: Workload, role: Role, machine: Machine, rows: int) -> float:
    item = BYTES[work.dtype]
    products = not machine.gpus and item == 2 and work.tokens <= PRODUCT_TOKENS
    return kept_bytes(role.shape, item, rows, work.tokens, checkpointing=work.checkpointing, products=products) + (
        _adapter_inputs(work, role, rows) if role.adapted else 0.0
    )


def _adapter_inputs(work: Workload, role: Role, rows: int) -> float:
    """What adapters keep beside the layer's own: their inner values, which are small."""
    return 0.01 * rows * work.tokens * BYTES[work.dtype] * role.shape.hidden * role.shape.layers


def _training(
    work: Workload,
    role: Role,
    of: Mapping[str, Held],
    stays: Mapping[str, float],
    base: Mapping[str, float],
    machine: Machine,
) -> list[Phase]:
    """Forward and backward passes of one role, and its step; roles take turns."""
    item, each = BYTES[work.dtype], of[role.name]
    kept = _kept(work, role, machine, max(work.rows, work.kept_rows))
    head = 0.0
    if not role.scalar:
        head = head_bytes(role.shape, item, work.rows * work.counted, trained=not role.adapted, gpu=machine.gpus)
    layer = backward_bytes(role.shape, item, work.rows, work.tokens)
    gradients = {"gradients": each.gradients} if each.gradients else {}
    moment = each.backward + max(head, layer)
    if each.ending > kept + moment:
        kept, moment = 0.0, each.ending
    only = len([r for r in work.roles if r.trained]) == 1
    name = "" if only else f" {role.name}"
    return [
        Phase(f"train{name}", stays, {**base, **gradients, "activations": kept, "backward": moment}),
        Phase(f"step{name}", stays, {**base, **gradients, "step": each.step}),
    ]


def _export(work: Workload, stays: Mapping[str, float], base: Mapping[str, float]) -> Phase:
    item = BYTES[work.dtype]
    largest = max(largest_module(role, item) for role in work.roles if role.trained)
    return Phase("export", stays, {**base, "module": largest})


def _host(work: Workload, of: Mapping[str, Held], machine: Machine) -> dict[str, float]:
    """Bytes in the main memory of the machine with rank 0, by phase: models are read there, all ranks at the same time
    below ZeRO-3 and rank 0 alone at it; the exported model is put together there."""
    item = BYTES[work.dtype]
    constant = sum(each.host for each in of.values()) * machine.ranks
    reading = max(item * role.weights * (1 if role.zero_stage == 3 else machine.ranks) for role in work.roles)
    export = max(item * role.weights for role in work.roles if role.trained)
    piece = max(4.0 * largest_weight(role.shape) for role in work.roles if role.trained) * machine.ranks
    return {"load": constant + reading, "train": constant, "checkpoint": constant + piece, "export": constant + export}
