"""Runs a plan: prepare, the stages one after the other, evaluate, report; shows the results at the end.

A stage is finished when its completion marker exists, so the same command continues a run that stopped anywhere.
Imports no torch.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.console import say
from rlhf.console.text import clean, duration
from rlhf.errors import EXIT_DONE, ConfigError, Terminated, error_lines
from rlhf.files import appears, claim_folder, empty_folder, lock_folder, release_folder, write_yaml
from rlhf.pipeline import preparation
from rlhf.pipeline.closing import close_run
from rlhf.pipeline.evaluation import EVALUATION_NAME
from rlhf.pipeline.job import JobFailed, run_job
from rlhf.pipeline.placed import RankFailed
from rlhf.pipeline.placement import placement_text
from rlhf.pipeline.plan import Plan, StagePlan, left_out_lines
from rlhf.pipeline.recipes import PIPELINE_NAME
from rlhf.pipeline.record import record_data, record_run
from rlhf.stages.result import CONFIG_NAME, DONE_NAME, LOG_NAME, StageResult, read_result

_MARKER_SECONDS = 600.0  # for the first node's completion marker to reach the others


@dataclass(frozen=True)
class Run:
    """What every job of a run needs to know."""

    plan: Plan
    overwrite: bool
    again: str  # the command that continues

    @property
    def output(self) -> Path:
        return self.plan.pipeline.output_dir


def run_pipeline(plan: Plan, *, replan: Callable[[Mapping[str, Any]], Plan], overwrite: bool, again: str) -> int:
    """Run the plan to its end; returns the exit code. `replan` makes the plan again, with the preparation's result."""
    run = Run(plan, overwrite, again)
    try:
        if plan.placement.first:
            claim_folder(run.output)
            lock_folder(run.output)
            if overwrite:
                _empty_folders(run)
        if plan.prepare is not None:
            placement = plan.placement
            if not placement.first:
                _await(preparation.marker(run.output), minutes=30)
            run = replace(run, plan=replan(preparation.prepare(run.output, plan.prepare, placement.alone)))
        if plan.placement.first:
            record_run(run.plan, command=again)
        for line in left_out_lines(run.plan):
            say(line)
        results = [_run_stage(run, index) for index in range(len(run.plan.stages))]
        if plan.placement.first:
            close_run(run.plan, results)
        return EXIT_DONE
    except JobFailed as failure:
        for problem in failure.problems:
            _error(f"{failure.job}: {problem}")
        _hint(f"its log: {failure.log}", f"to continue: {run.again}")
        return failure.exit_code
    except (KeyboardInterrupt, Terminated) as error:
        lines, code = error_lines(error)
        _error(lines[0])
        _hint(f"to continue: {run.again}")
        return code


def _empty_folders(run: Run) -> None:
    folders = [stage.config.output_dir for stage in run.plan.stages]
    if len(run.plan.stages) + len(run.plan.left_out) == len(run.plan.specs):
        folders.append(run.output / preparation.FOLDER)
    for folder in folders:
        if folder.is_dir():
            claim_folder(folder)
            lock_folder(folder, wait=3.0)
            empty_folder(folder)
            release_folder(folder)  # the stage locks it itself
    for name in (EVALUATION_NAME, "report.html", PIPELINE_NAME):
        (run.output / name).unlink(missing_ok=True)


# --- stages ----------------------------------------------------------------------------------------------------------


def _run_stage(run: Run, index: int) -> StageResult:
    """Run one stage, unless it is finished; returns the result in its completion marker."""
    stage, placement = run.plan.stages[index], run.plan.placement
    package, folder = stage.spec.package, stage.config.output_dir
    head = f"[{index + 1}/{len(run.plan.stages)}] {package}"
    result = read_result(folder) if not run.overwrite else None
    if result is not None:
        say(f"{head}: finished before in {duration(result.seconds)}")
        if placement.first:
            record_data(run.output, package, folder)
        return result
    say(f"{head}: {_start_of(stage)}, {placement_text(placement)}")
    with tempfile.TemporaryDirectory() as own:
        if placement.first:
            claim_folder(folder)
            config, log_name = folder / CONFIG_NAME, LOG_NAME
        else:  # the folder is the first node's; this node only needs the settings, which are the same
            _await(folder, minutes=10)
            config, log_name = Path(own) / CONFIG_NAME, f"log.node{placement.node_rank}.txt"
        write_yaml(config, stage.config.model_dump(mode="json"))
        run_job(package, folder, package, ["--config", str(config)], placement, log_name)
    if not placement.first:
        _await(folder / DONE_NAME, minutes=_MARKER_SECONDS / 60)
    result = read_result(folder)
    if result is None:
        failure = RankFailed([f"it ended without its completion marker {folder / DONE_NAME}"], exit_code=1)
        raise JobFailed(package, folder / LOG_NAME, failure)
    if placement.first:
        record_data(run.output, package, folder)
    else:
        for path in result.models.values():
            _await(Path(path), minutes=_MARKER_SECONDS / 60)
    say(f"{package} finished in {duration(result.seconds)}: {result.text()}")
    return result


def _start_of(stage: StagePlan) -> str:
    """The models that a stage starts from."""
    return " and ".join(filter(None, (stage.model(each.setting) for each in stage.spec.inputs)))


def _await(path: Path, *, minutes: float) -> None:
    if not appears(path, seconds=60 * minutes):
        raise ConfigError(
            f"{socket.gethostname()} has seen no {path} for {minutes:.0f} minutes: all nodes must share the output "
            "folder, and node 0 must run"
        )


def _error(text: str) -> None:
    print(f"error: {clean(text)}", file=sys.stderr, flush=True)


def _hint(*lines: str) -> None:
    for line in lines:
        print(f"  {clean(line)}", file=sys.stderr, flush=True)
