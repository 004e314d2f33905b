"""Runs a plan: prepare, the stages one after the other, evaluate, report; and says at the end what came out.

A stage is finished when its completion marker exists, so a run that stopped anywhere goes on by the same command.
Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf import preparation
from rlhf.config import read_yaml
from rlhf.console import duration, figure, say, table, warn
from rlhf.errors import EXIT_DONE, ConfigError, RLHFError, Terminated, UserError, describe
from rlhf.files import claim_folder, empty_folder, lock_folder, release_folder, write_yaml
from rlhf.launch import ROOT, RankFailed
from rlhf.placement import describe as describe_placement
from rlhf.plan import Plan, StagePlan
from rlhf.recipes import PIPELINE_NAME
from rlhf.run_evaluation import EVALUATION_NAME, evaluate
from rlhf.stage import CONFIG_NAME, DONE_NAME, LOG_NAME, StageResult, read_result
from rlhf.step import StepFailed, run_step

_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors")
_MARKER_SECONDS = 60.0  # for the first node's completion marker to reach the others


@dataclass(frozen=True)
class Run:
    """What every step of a run needs to know."""

    plan: Plan
    overwrite: bool
    again: str  # the command that continues

    @property
    def output(self) -> Path:
        return self.plan.pipeline.output_dir


def run_pipeline(plan: Plan, *, replan: Callable[[Mapping[str, Any]], Plan], overwrite: bool, again: str) -> int:
    """Run the plan to its end; the exit code. `replan` makes the plan anew from what the preparation brought."""
    run = Run(plan, overwrite, again)
    try:
        if plan.placement.first:
            claim_folder(run.output)
            lock_folder(run.output)
            if overwrite:
                _start_anew(run)
        if plan.prepare is not None:
            placement = plan.placement
            if not placement.first:
                _await(preparation.marker(run.output), minutes=30)
            run = replace(run, plan=replan(preparation.prepare(run.output, plan.prepare, gpus=placement.gpus)))
        if plan.placement.first:
            _record(run)
        results = [_run_stage(run, index) for index in range(len(run.plan.stages))]
        if plan.placement.first:
            _close(run, results)
        return EXIT_DONE
    except StepFailed as failure:
        for problem in failure.problems:
            _error(f"{failure.step}: {problem}")
        _hint(f"its log: {failure.log}", f"to continue: {run.again}")
        return failure.exit_code
    except (KeyboardInterrupt, Terminated) as error:
        lines, code = describe(error)
        _error(lines[0])
        _hint(f"to continue: {run.again}")
        return code


def _start_anew(run: Run) -> None:
    folders = [stage.config.output_dir for stage in run.plan.stages]
    if run.plan.pipeline.selected == [1, 2, 3]:
        folders.append(run.output / preparation.FOLDER)
    for folder in folders:
        if folder.is_dir():
            claim_folder(folder)
            lock_folder(folder, wait=3.0)
            empty_folder(folder)
            release_folder(folder)  # the stage itself takes it
    for name in (EVALUATION_NAME, "report.html", PIPELINE_NAME):
        (run.output / name).unlink(missing_ok=True)


# --- steps -----------------------------------------------------------------------------------------------------------


def _run_stage(run: Run, index: int) -> StageResult:
    """Run one stage, unless it is finished; its result from the completion marker."""
    stage, placement = run.plan.stages[index], run.plan.placement
    package, folder = stage.spec.package, stage.config.output_dir
    head = f"[{index + 1}/{len(run.plan.stages)}] {package}"
    result = read_result(folder) if not run.overwrite else None
    if result is not None:
        say(f"{head}: finished before in {duration(result.seconds)}")
        return result
    say(f"{head}: {_start_of(stage)}, {describe_placement(placement)}")
    with tempfile.TemporaryDirectory() as own:
        if placement.first:
            claim_folder(folder)
            config, log_name = folder / CONFIG_NAME, LOG_NAME
        else:  # the folder is the first node's; this one only needs the settings, which are the same
            _await(folder, minutes=10)
            config, log_name = Path(own) / CONFIG_NAME, f"log.node{placement.node_rank}.txt"
        write_yaml(config, stage.config.model_dump(mode="json"))
        if placement.nodes > 1 and placement.hostfile is None:  # the launcher counts nodes by their names
            hosts = Path(own) / "hostfile"
            hosts.write_text("".join(f"node-{i} slots={placement.ranks}\n" for i in range(placement.nodes)))
            placement = replace(placement, hostfile=hosts)
        run_step(package, folder, package, ["--config", str(config)], placement, log_name)
    if not placement.first:
        _await(folder / DONE_NAME, minutes=_MARKER_SECONDS / 60)
    result = read_result(folder)
    if result is None:
        failure = RankFailed([f"it ended without its completion marker {folder / DONE_NAME}"], exit_code=1)
        raise StepFailed(package, folder / LOG_NAME, failure)
    if placement.first:
        _record_data(run, stage)
    say(f"{package} finished in {duration(result.seconds)}: {_figures(result)}")
    return result


def _start_of(stage: StagePlan) -> str:
    """The models that a stage starts from."""
    names = [getattr(stage.config, name, "") for name in ("model", "actor_model", "reward_model")]
    return " and ".join(name for name in names if name)


def _await(path: Path, *, minutes: float) -> None:
    deadline = time.monotonic() + 60 * minutes
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(f"{path} did not appear: the nodes must share the output folder, and node 0 must run")
        time.sleep(0.2)


# --- the record of the run -------------------------------------------------------------------------------------------


def _record(run: Run) -> None:
    """`pipeline.yaml`: all settings, so that it can be a recipe itself, and under `run` what they were used with."""
    plan, path = run.plan, run.output / PIPELINE_NAME
    old = read_yaml(path) if path.exists() else {}
    about_this_run = {"output_dir", "stages", "node_rank"}
    sections: dict[str, Any] = {
        "pipeline": plan.pipeline.model_dump(mode="json", exclude_none=True, exclude=about_this_run)
    }
    for key in ("prepare", "evaluate"):
        if getattr(plan, key) is not None:
            sections[key] = getattr(plan, key)
    for stage in plan.stages:
        sections[stage.spec.package] = stage.config.model_dump(mode="json", exclude=stage.managed)
    about = {
        "recipe": plan.recipe,
        "command": run.again,
        "ranks": describe_placement(plan.placement),
        "versions": _versions(),
        "git": _git_revision(),
        "data": old.get("run", {}).get("data", {}),
    }
    write_yaml(path, {**old, **sections, "run": about})


def _record_data(run: Run, stage: StagePlan) -> None:
    """Fold what a stage says of its data (fingerprints, counts) into `pipeline.yaml`."""
    source = stage.config.output_dir / "data.yaml"
    if source.exists():
        record = read_yaml(run.output / PIPELINE_NAME)
        record["run"]["data"][stage.spec.package] = read_yaml(source)
        write_yaml(run.output / PIPELINE_NAME, record)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """The project's commit, with "+" when files were changed since; None outside a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


# --- the end ---------------------------------------------------------------------------------------------------------


def _close(run: Run, results: Sequence[StageResult]) -> None:
    """Evaluate, write the report, and say what came out."""
    models = {label: path for result in results for label, path in result.models.items()}
    evaluate(run.plan, models)
    _show_results(run, results, models)
    report = _report(run)
    if report:
        say(f"report: {report}")
    chat = models.get("actor") or models.get("sft")
    if chat:
        say(f"chat:   python -m rlhf.chat {chat}")


def _show_results(run: Run, results: Sequence[StageResult], models: Mapping[str, str]) -> None:
    price = run.plan.pipeline.price_per_gpu_hour
    rows = []
    for stage, result in zip(run.plan.stages, results, strict=True):
        rows.append([stage.spec.package, result.seconds, _figures(result)])
    rows.append(["together", sum(result.seconds for result in results), ""])
    ranks = run.plan.placement.world_size
    cost = [f"{price * ranks * row[1] / 3600:.2f}" for row in rows] if price else []
    shown = [[row[0], duration(row[1]), *cost[i : i + 1], row[2]] for i, row in enumerate(rows)]
    table("Stages", ["stage", "time", *(["cost"] if price else []), "result"], shown)
    table("Models", ["model", "folder"], [[label, path] for label, path in models.items()])


def _figures(result: StageResult) -> str:
    return ", ".join(f"{name} {figure(value)}" for name, value in result.metrics.items())


def _report(run: Run) -> Path | None:
    """`report.html`; a run is not failed for want of it."""
    path = run.output / "report.html"
    try:
        from rlhf.report import write_report  # type: ignore[import-not-found]

        write_report(run.output)
    except ImportError:
        return None
    except (RLHFError, UserError, OSError, ValueError, KeyError) as error:
        warn(f"no report: {describe(error)[0][0]}")
        return None
    return path


def _error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _hint(*lines: str) -> None:
    for line in lines:
        print(f"  {line}", file=sys.stderr, flush=True)
