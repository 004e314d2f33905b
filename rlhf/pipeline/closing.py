"""The end of a run: its models side by side, its times and figures, its report, and how to talk to what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.console import say, table, warn
from rlhf.console.text import duration
from rlhf.errors import RLHFError, error_lines
from rlhf.pipeline import preparation
from rlhf.pipeline.evaluation import evaluate
from rlhf.pipeline.plan import Plan
from rlhf.stages.result import StageResult


def close_run(plan: Plan, results: Sequence[StageResult]) -> None:
    """Evaluate, write the report, and say what came out. Raises StepFailed when the evaluation fails."""
    models = {label: path for result in results for label, path in result.models.items()}
    seconds = evaluate(plan, models)
    _show_times(plan, results, seconds)
    table("Models", ["model", "folder"], list(models.items()))
    report = _report(plan.pipeline.output_dir)
    if report:
        say(f"report: {report}")
    outputs = [output for stage in reversed(plan.stages) for output in stage.spec.outputs]
    chat = next((models[o.label] for o in outputs if o.kind == "language" and o.label in models), None)
    if chat:
        say(f"chat:   python -m rlhf.chat {chat}")


def _show_times(plan: Plan, results: Sequence[StageResult], evaluation_seconds: float) -> None:
    """Time, cost and figures of every step; the preparation and the evaluation use one rank."""
    price, ranks = plan.pipeline.price_per_gpu_hour, plan.placement.world_size
    preparing = preparation.seconds(plan.pipeline.output_dir) if plan.prepare is not None else 0.0
    steps = [("prepare", preparing, 1, "")]
    steps += [(s.spec.package, r.seconds, ranks, r.text()) for s, r in zip(plan.stages, results, strict=True)]
    steps = [step for step in [*steps, ("evaluate", evaluation_seconds, 1, "")] if step[1]]
    rows = [[name, duration(taken), *_cost(price, taken * used), said] for name, taken, used, said in steps]
    whole, paid = sum(step[1] for step in steps), sum(step[1] * step[2] for step in steps)
    rows.append(["together", duration(whole), *_cost(price, paid), ""])
    table("Stages", ["stage", "time", *(["cost"] if price else []), "result"], rows)


def _cost(price: float | None, rank_seconds: float) -> list[str]:
    return [f"{price * rank_seconds / 3600:.2f}"] if price else []


def _report(output: Path) -> Path | None:
    """`report.html`; a run is not failed for want of it."""
    from rlhf.report.page import write_report  # brings a template engine

    try:
        return write_report(output)
    except (RLHFError, OSError, ValueError, KeyError) as error:
        warn(f"no report: {error_lines(error)[0][0]}")
        return None
