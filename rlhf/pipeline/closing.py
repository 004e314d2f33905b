"""The end of a run: the evaluation of its models, a table of times and figures, the report, the command for a chat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.console import say, table, warn
from rlhf.console.text import duration
from rlhf.errors import RLHFError, error_lines
from rlhf.pipeline import preparation
from rlhf.pipeline.evaluation import run_evaluation
from rlhf.pipeline.launch import shown
from rlhf.pipeline.plan import Plan
from rlhf.stages.result import StageResult


def close_run(plan: Plan, results: Sequence[StageResult]) -> None:
    """Evaluate, write the report, and show the results. Raises JobFailed when the evaluation fails."""
    models = {label: path for result in results for label, path in result.models.items()}
    seconds = run_evaluation(plan, models)
    _show_times(plan, results, seconds)
    table("Models", ["model", "folder"], list(models.items()))
    report = _report(plan.pipeline.output_dir)
    if report:
        say(f"report: {report}")
    outputs = [output for stage in reversed(plan.stages) for output in stage.spec.outputs]
    chat = next((models[o.label] for o in outputs if o.kind == "language" and o.label in models), None)
    if chat:
        say(f"chat:   {shown([sys.executable, '-m', 'rlhf.chat', chat])}")


def _show_times(plan: Plan, results: Sequence[StageResult], evaluation_seconds: float) -> None:
    """A table of the time, cost and figures of every job; the preparation and the evaluation use one rank."""
    price, ranks = plan.pipeline.price_per_gpu_hour, plan.placement.world_size
    preparing = preparation.seconds(plan.pipeline.output_dir) if plan.prepare is not None else 0.0
    jobs = [("prepare", preparing, 1, "")]
    jobs += [(s.spec.package, r.seconds, ranks, r.text()) for s, r in zip(plan.stages, results, strict=True)]
    jobs = [job for job in [*jobs, ("evaluate", evaluation_seconds, 1, "")] if job[1]]
    rows = [[name, duration(taken), *_cost(price, taken * used), figures] for name, taken, used, figures in jobs]
    total, paid = sum(job[1] for job in jobs), sum(job[1] * job[2] for job in jobs)
    rows.append(["total", duration(total), *_cost(price, paid), ""])
    table("Stages", ["stage", "time", *(["cost"] if price else []), "result"], rows)


def _cost(price: float | None, rank_seconds: float) -> list[str]:
    return [f"{price * rank_seconds / 3600:.2f}"] if price else []


def _report(output: Path) -> Path | None:
    """Write `report.html`; without it the run is still a success."""
    from rlhf.report.page import write_report  # imports a template engine

    try:
        return write_report(output)
    except (RLHFError, OSError, ValueError, KeyError) as error:
        warn(f"no report: {error_lines(error)[0][0]}")
        return None
