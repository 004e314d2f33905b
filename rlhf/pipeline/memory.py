"""The memory and the time of a plan: what each stage needs on a rank, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf.console import say, table, warn
from rlhf.console.text import duration
from rlhf.hardware import Machine
from rlhf.memory.cards import Card, main_memory
from rlhf.memory.effort import PEAK_SHARE, effort
from rlhf.memory.ladder import Changes, candidates
from rlhf.memory.phases import Phase, StageMemory, stage_memory
from rlhf.memory.workload import Workload
from rlhf.pipeline.plan import Plan, StagePlan
from rlhf.stages.problems import settings_problems

GB = 1e9
# A CPU's plan warns only when it takes far more than the machine has: much of it may be pages of files.
FAR_BEYOND = 1.5


@dataclass(frozen=True)
class Need:
    """What one stage of a plan needs."""

    stage: StagePlan
    work: Workload
    memory: StageMemory

    @property
    def name(self) -> str:
        return self.stage.spec.package


def needs(plan: Plan) -> list[Need]:
    """The needs of the stages that are still to run and whose models are known."""
    found = (_need(plan, stage, {}) for stage in plan.stages if not stage.finished)
    return [need for need in found if need is not None]


def _need(plan: Plan, stage: StagePlan, changes: Changes) -> Need | None:
    config = stage.config.model_copy(update=changes)
    work = stage.spec.workload(config, stage.models, plan.machine)
    if work is None:
        return None
    return Need(stage, work, stage_memory(work, plan.machine, capacity=plan.card.usable if plan.card else 0.0))


def fits(need: Need, card: Card) -> bool:
    """Whether the largest phase fits into what a plan may fill of a GPU."""
    return need.memory.largest.total <= card.usable


def remedy(plan: Plan, need: Need) -> Changes | None:
    """The smallest change of a stage's settings with which it fits; None if the ladder has none."""
    stage = need.stage
    typed = {name for name, source in stage.sources.items() if source in ("flag", "--set")}
    for changes in candidates(stage.config, need.work, plan.machine, typed=typed):
        if _helps(plan, stage, changes):
            for name in list(changes):  # of several that were added up, the cheapest may not be needed
                fewer = {key: value for key, value in changes.items() if key != name}
                if fewer and _helps(plan, stage, fewer):
                    changes = fewer
            return changes
    return None


def _helps(plan: Plan, stage: StagePlan, changes: Changes) -> bool:
    """Whether a stage fits with other settings, and these go together."""
    other = _need(plan, stage, changes)
    if other is None or plan.card is None or not fits(other, plan.card):
        return False
    have = _main_memory(plan)
    if have and max(other.memory.host.values()) > have:
        return False
    return not settings_problems(stage.spec, stage.config.model_copy(update=changes), plan.machine)


def _main_memory(plan: Plan) -> float:
    """Bytes of main memory of a machine of the run; 0 if unknown."""
    if plan.machine.described:
        return 0.0
    return plan.placement.main_memory if plan.placement.hosts else main_memory()


def misfits(plan: Plan) -> list[Need]:
    """The stages that do not fit the plan's GPUs."""
    return [need for need in needs(plan) if plan.card is not None and not fits(need, plan.card)]


def memory_problems(plan: Plan) -> list[str]:
    """A line for each stage that does not fit, with what would make it fit."""
    return [_misfit(plan, need) for need in misfits(plan)]


def _misfit(plan: Plan, need: Need) -> str:
    assert plan.card is not None
    worst, changes = need.memory.largest, remedy(plan, need)
    way = (
        f"use {' '.join(as_sets(need.stage, changes))} (or --fit)"
        if changes
        else "no change of its settings is enough; use more or larger GPUs, or a smaller model"
    )
    return (
        f"{need.name} needs {worst.total / GB:.1f} GB on each GPU ({worst.name}), and a plan may fill "
        f"{plan.card.usable / GB:.1f} of its {plan.card.memory / GB:.1f}; {way}; --force runs it as it is"
    )


def as_sets(stage: StagePlan, changes: Changes) -> list[str]:
    """Changes as `--set` arguments."""
    return [f"--set {one}" for one in set_values(stage, changes)]


def set_values(stage: StagePlan, changes: Changes) -> list[str]:
    """`["step1_sft.micro_batch_size=2"]`."""
    shown = {True: "true", False: "false"}
    return [
        f"{stage.spec.package}.{name}={shown.get(v, v) if isinstance(v, bool) else v}" for name, v in changes.items()
    ]


def warn_of_main_memory(plan: Plan) -> None:
    """On CPUs, warn of a stage that takes far more than the machine has."""
    have = _main_memory(plan)
    for need in needs(plan) if have and not plan.machine.gpus else ():
        wanted = need.memory.largest.total * plan.machine.ranks
        if wanted > FAR_BEYOND * have:
            machine = "a host" if plan.placement.hosts else "this machine"
            warn(f"{need.name} needs some {wanted / GB:.1f} GB of main memory, and {machine} has {have / GB:.1f}")


# --- what is printed --------------------------------------------------------------------------------------------------


def show_memory(plan: Plan, *, share: float | None) -> None:
    """Print the memory, the time and the price of every stage."""
    found = needs(plan)
    for need in found:
        _show_phases(need, plan.machine)
    missing = [stage.spec.package for stage in plan.stages if not stage.finished and not _has(found, stage)]
    if missing:
        say(f"memory of {', '.join(missing)}: not known before its models are")
    if found:
        _show_verdict(plan, found)
        _show_effort(plan, found, PEAK_SHARE if share is None else share)


def _has(found: Sequence[Need], stage: StagePlan) -> bool:
    return any(need.stage is stage for need in found)


def _show_phases(need: Need, machine: Machine) -> None:
    names = [role.name for role in need.work.roles]
    rows = []
    for phase in need.memory.phases:
        roles = [f"{phase.roles.get(name, 0.0) / GB:.1f}" for name in names]
        rows.append([phase.name, *roles, _beside(phase), f"{phase.total / GB:.1f}"])
    exact = all(role.shape.exact for role in need.work.roles)
    title = f"{need.name}: GB on each {'GPU' if machine.gpus else 'rank'}" + ("" if exact else ", about")
    table(title, ["phase", *names, "beside them", "together"], rows)
    host = need.memory.host
    if machine.gpus:
        most = max(host, key=lambda name: host[name])
        checkpoint = host["checkpoint"] / GB
        say(f"  main memory of a machine: {host[most] / GB:.1f} GB ({most}), {checkpoint:.1f} for a checkpoint")
    model = need.memory.model / GB
    say(f"  disk: {need.memory.checkpoint / GB:.1f} GB a checkpoint, {model:.1f} GB for the models made")


def _beside(phase: Phase) -> str:
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in phase.beside.items() if size >= GB / 20)
    return f"{parts} ({phase.note})" if phase.note else parts


def _show_verdict(plan: Plan, found: Sequence[Need]) -> None:
    worst = max(found, key=lambda need: need.memory.largest.total)
    phase = worst.memory.largest
    each = "GPU" if plan.machine.gpus else "rank"
    head = f"largest: {phase.name} of {worst.name}, {phase.total / GB:.1f} GB on each {each}"
    if plan.card is None:
        have = _main_memory(plan)
        rest = f"; {plan.machine.ranks} of them share {have / GB:.1f} GB of main memory" if have else ""
        say(head + ("" if plan.machine.gpus else rest))
        return
    verdict = "it fits" if not misfits(plan) else "it does not fit"
    say(f"{head}, of {plan.card.usable / GB:.1f} that may be filled ({plan.card.name}): {verdict}")


def _show_effort(plan: Plan, found: Sequence[Need], share: float) -> None:
    price, world = plan.pipeline.price_per_gpu_hour, plan.machine.world_size
    rows: list[list[str]] = []
    hours, whole = 0.0, True
    for need in found:
        each, steps = effort(need.work, plan.machine, plan.card, share=share), need.work.steps
        count = steps.count
        seconds = each.seconds * (count or 0)
        hours, whole = hours + seconds / 3600, whole and count is not None
        rows.append(
            [
                need.name,
                steps.unit,
                f"{each.tokens:,.0f}",
                f"{each.total / 1e15:.3g}",
                f"{each.seconds:.3g}" if each.seconds else "",
                str(count or "by the data"),
                duration(seconds) if seconds else "",
                f"{price * world * seconds / 3600:.2f}" if price and seconds else "",
            ]
        )
    columns = ["stage", "one", "tokens", "10¹⁵ operations", "seconds", "how many", "time", "price"]
    used = [i for i in range(len(columns)) if i < 4 or any(row[i] for row in rows)]
    at = f", at {share:.0%} of {plan.card.tflops:g}·10¹² operations a second" if plan.card and plan.card.tflops else ""
    title = f"Time, with sequences of full length{at}"
    table(title, [columns[i] for i in used], [[row[i] for i in used] for row in rows])
    if whole and hours:
        cost = f", {price * world * hours:.2f} in all" if price else ""
        say(f"all stages: {duration(hours * 3600)}{cost}")


def fitting_sets(plan: Plan) -> Iterator[tuple[Need, Changes]]:
    """For each stage that does not fit, the first change of the ladder with which it does."""
    for need in misfits(plan):
        if changes := remedy(plan, need):
            yield need, changes
