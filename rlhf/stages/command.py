"""A stage as a command: `python -m step1_sft`, alone or as a rank that a launcher started.

The order is: settings from file and flags → every problem at once, before torch is imported → the stage's folder → the
stage's `main.run(config)` → `done.json`, the completion marker, last. Imports no torch itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rlhf import process
from rlhf.command import Command, UserPath, leave_through
from rlhf.config import build, given, groups_of, options, read_yaml
from rlhf.console import say, warn
from rlhf.console.text import duration
from rlhf.errors import EXIT_DONE, ConfigError, TrainingError, UserError
from rlhf.files import write_json
from rlhf.stage_config import RunSettings
from rlhf.stages.folder import open_folder
from rlhf.stages.problems import stage_problems, this_machine
from rlhf.stages.result import DONE_NAME, LOG_NAME, StageResult, write_result
from rlhf.stages.spec import StageSpec

SPENT_NAME = "spent.json"


def stage_command(spec: StageSpec) -> click.Command:
    """The command of a stage. Its flags are the fields of the config; it calls `PACKAGE.main.run(config)`."""
    package, about = spec.package, (spec.config_class.__doc__ or "").strip().splitlines()[0]

    groups = groups_of(spec.config_class, Run=("config", "overwrite"))

    @click.command(package, cls=Command, groups=groups, is_rank=True, help=f"{package}: {about}")
    @options(spec.config_class)
    @click.option("--config", type=UserPath(), help="YAML file of settings; flags take precedence")
    @click.option("--overwrite", is_flag=True, help="new start in an output folder that already holds a run")
    @click.option("--local_rank", "--local-rank", type=int, hidden=True)  # launchers add it; LOCAL_RANK is what counts
    def command(config: Path | None, overwrite: bool, local_rank: int | None, **flags: Any) -> int:
        _die_with_owner()
        if wrong := process.launcher_problems():
            raise ConfigError(*wrong)
        values = {**(read_yaml(config) if config else {}), **given(flags)}
        settings = build(spec.config_class, values, where=package)
        if not process.is_main():
            started_by_train = process.sends_events()  # which starts no stage that is finished
            if overwrite or started_by_train or not (settings.output_dir / DONE_NAME).exists():
                _run(spec, settings)
            return EXIT_DONE
        found = stage_problems(spec, settings, this_machine())
        if found:
            raise ConfigError(*found)
        if open_folder(settings, package, overwrite=overwrite):
            _run(spec, settings)
        else:
            say(f"{package} is finished in {settings.output_dir}; --overwrite runs it again")
        return EXIT_DONE

    return command


def _run(spec: StageSpec, config: RunSettings) -> None:
    began = time.monotonic()
    before = _spent_before(config.output_dir)
    try:
        run: Callable[[Any], StageResult] = importlib.import_module(f"{spec.package}.main").run
        if spec.process_group:
            _join(config)
            _warn_of_slow_dtype(config.dtype)
            _fetch_models(spec, config)
        result = run(config)
        if spec.process_group:
            importlib.import_module("rlhf.training.distributed").barrier()  # every rank has finished
    except BaseException as error:
        _say_which_node(error)
        if process.is_main():
            _note_spent(config.output_dir, before + time.monotonic() - began)
        if not process.sends_events() and not isinstance(error, UserError):
            with (config.output_dir / LOG_NAME).open("a", encoding="utf-8", errors="backslashreplace") as log:
                traceback.print_exception(error, file=log)
        raise
    if process.is_main():
        _finish(config.output_dir, spec.package, result, seconds=before + time.monotonic() - began)


def _say_which_node(error: BaseException) -> None:
    """Raise TrainingError when the error comes from a node that is lost."""
    if isinstance(error, RuntimeError) and process.node_count() > 1:
        from rlhf.training.nodes import lost_node

        if line := lost_node(error):
            raise TrainingError(line) from error


def _spent_before(folder: Path) -> float:
    """Seconds that earlier attempts took, as far as they could write them down."""
    try:
        return float(json.loads((folder / SPENT_NAME).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _note_spent(folder: Path, seconds: float) -> None:
    with contextlib.suppress(OSError):  # the disk may be full; that may be the failure itself
        write_json(folder / SPENT_NAME, {"seconds": round(seconds, 3)})


def _join(config: RunSettings) -> None:
    """Join the process group, and see that its nodes are alike and stay. The process then ends by the group's shutdown:
    the interpreter's own exit can abort."""
    import torch.distributed

    from rlhf.training import cpu, distributed, nodes

    if not torch.distributed.is_initialized():
        leave_through(distributed.shutdown)
        cpu.tune()
    distributed.init(config.seed)
    nodes.watch_nodes()
    nodes.check_nodes(config.output_dir)


def _fetch_models(spec: StageSpec, config: RunSettings) -> None:
    """On each node one rank downloads the models that are not there yet; the others wait for it, however long."""
    from rlhf.models.fetching import fetch

    if process.local_rank() == 0:
        for name in dict.fromkeys(str(getattr(config, each.setting)) for each in spec.inputs):
            fetch(name)
    importlib.import_module("rlhf.training.distributed").barrier()


def _warn_of_slow_dtype(dtype: str) -> None:
    from rlhf.training import distributed

    if dtype == "bf16" and not distributed.on_gpu() and not distributed.computes_in_bf16():
        warn("dtype=bf16: this CPU does not multiply in bf16, so training takes many times as long as with dtype=fp32")


def _finish(folder: Path, package: str, result: StageResult, *, seconds: float) -> None:
    done = replace(result, seconds=seconds)
    write_result(folder, package, done)
    if not process.sends_events():
        say(f"{package} finished in {duration(seconds)}: {done.text()}")
        for label, path in result.models.items():
            say(f"  {label}: {path}")


def _die_with_owner() -> None:
    """End this rank when the `train.py` on its machine has ended, even if a launcher between them still runs."""
    owner = int(os.environ.get("RLHF_OWNER", "0"))
    if not owner:
        return

    def watch() -> None:
        while True:
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGKILL)
            except PermissionError:
                return
            time.sleep(1.0)

    threading.Thread(target=watch, daemon=True, name="owner-watch").start()
