"""A stage as a command: `python -m step1_sft`, alone or as a rank that a launcher started.

The order is: settings from file and flags → every problem at once, before torch is imported → the stage's folder → the
stage's `main.run(config)` → `done.json`, the completion marker, last. Imports no torch itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from rlhf import hardware, process
from rlhf.command import Command, leave_through
from rlhf.config import build, differences, given, options, read_yaml
from rlhf.console import say
from rlhf.console.text import duration, figure
from rlhf.errors import EXIT_DONE, ConfigError, DataError, UserError
from rlhf.files import claim_folder, empty_folder, lock_folder, write_json, write_yaml
from rlhf.metrics import tracker_problems
from rlhf.stage_config import BatchSettings, RunSettings, stage_engine_problems

CONFIG_NAME, DONE_NAME, LOG_NAME, SPENT_NAME = "config.yaml", "done.json", "log.txt", "spent.json"


@dataclass
class StageResult:
    """What a stage's `run` returns: its figures that matter, and the folders of its models by label ("actor")."""

    metrics: dict[str, float] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # that it took, attempts that were stopped or failed included


def stage_command(config_class: type[RunSettings], package: str, *, process_group: bool = True) -> click.Command:
    """The command of a stage package: its config's fields as flags, and `package.main.run(config)` behind them.

    `process_group` is off for a stage that needs neither torch nor other ranks.
    """

    @click.command(package, cls=Command, help=f"{package}: {(config_class.__doc__ or '').strip().splitlines()[0]}")
    @options(config_class)
    @click.option("--config", type=click.Path(path_type=Path), help="a YAML file of settings; flags go before it")
    @click.option("--overwrite", is_flag=True, help="start anew in an output folder that has a run")
    @click.option("--events", is_flag=True, hidden=True)  # RLHF_EVENTS=1 where a launcher does not pass it on
    @click.option("--local_rank", "--local-rank", type=int, hidden=True)  # launchers add it; LOCAL_RANK is what counts
    def command(config: Path | None, overwrite: bool, events: bool, local_rank: int | None, **flags: Any) -> int:
        if events:
            os.environ["RLHF_EVENTS"] = "1"
        _die_with_owner()
        values = {**(read_yaml(config) if config else {}), **given(flags)}
        settings = build(config_class, values, where=package)
        if not process.is_main():
            started_by_train = process.sends_events()  # which starts no stage that is finished
            if overwrite or started_by_train or not (settings.output_dir / DONE_NAME).exists():
                _run(settings, package, process_group=process_group)
            return EXIT_DONE
        found = stage_problems(settings, package, world_size=int(os.environ.get("WORLD_SIZE", "1")))
        if found:
            raise ConfigError(*found)
        if open_folder(settings, package, overwrite=overwrite):
            _run(settings, package, process_group=process_group)
        else:
            say(f"{package} is finished in {settings.output_dir}; --overwrite runs it again")
        return EXIT_DONE

    return command


def read_result(folder: Path) -> StageResult | None:
    """The result of a finished stage; None without its completion marker. Raises DataError when that is broken."""
    path = folder / DONE_NAME
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        metrics = {name: math.nan if v is None else v for name, v in value["metrics"].items()}
        return StageResult(metrics=metrics, models=dict(value["models"]), seconds=float(value["seconds"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged; remove it to run the stage again") from None


def open_folder(config: RunSettings, package: str, *, overwrite: bool = False) -> bool:
    """Take the stage's folder and write `config.yaml`; False when the stage is finished there.

    Raises ConfigError when the folder is another's, is in use, or holds a run with other settings.
    """
    folder = config.output_dir
    claim_folder(folder)
    lock_folder(folder, wait=3.0)  # ranks of a run that was killed this moment may still be on their way out
    if overwrite:
        empty_folder(folder)
    refuse_differences(folder / CONFIG_NAME, config, package)
    finished = (folder / DONE_NAME).exists()
    if not finished:
        write_yaml(folder / CONFIG_NAME, config.model_dump(mode="json"))
    return not finished


def refuse_differences(path: Path, config: RunSettings, package: str) -> None:
    """Raise ConfigError when `path` holds other settings than `config`, resumable ones aside."""
    if not path.exists():
        return
    changed = differences(read_yaml(path), config)
    if changed:
        raise ConfigError(
            f"{path.parent} holds a run of {package} with other settings ({'; '.join(changed)}); "
            "use the same ones to resume it, --overwrite to start anew, or another output folder"
        )


def settings_problems(config: RunSettings, package: str, *, world_size: int, gpus: bool) -> list[str]:
    """What is wrong between a stage's settings, on this machine and number of ranks."""
    return [
        *config.problems(world_size),
        *(config.batch_problems(package, world_size) if isinstance(config, BatchSettings) else []),
        *stage_engine_problems(config, package, gpus=gpus, bf16=gpus and hardware.bf16_gpus()),
        *tracker_problems(config.trackers),
    ]


def stage_problems(config: RunSettings, package: str, *, world_size: int) -> list[str]:
    """All that is wrong with a stage's settings and the files that they name; looked up without torch."""
    gpus = hardware.accelerators() > 0 and os.environ.get("DS_ACCELERATOR") != "cpu"
    found = settings_problems(config, package, world_size=world_size, gpus=gpus)
    if importlib.util.find_spec(f"{package}.checks"):
        found += importlib.import_module(f"{package}.checks").problems(config)
    return found


def _run(config: RunSettings, package: str, *, process_group: bool) -> None:
    began = time.monotonic()
    before = _spent_before(config.output_dir)
    try:
        run: Callable[[Any], StageResult] = importlib.import_module(f"{package}.main").run
        if process_group:
            _join(config.seed)
        result = run(config)
        if process_group:
            importlib.import_module("rlhf.training.distributed").barrier()  # every rank came to its end
    except BaseException as error:
        if process.is_main():
            _note_spent(config.output_dir, before + time.monotonic() - began)
        if not process.sends_events() and not isinstance(error, UserError):
            with (config.output_dir / LOG_NAME).open("a", encoding="utf-8") as log:
                traceback.print_exception(error, file=log)
        raise
    if process.is_main():
        _finish(config.output_dir, package, result, seconds=before + time.monotonic() - began)


def _spent_before(folder: Path) -> float:
    """Seconds that earlier attempts took, as far as they could note it."""
    try:
        return float(json.loads((folder / SPENT_NAME).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _note_spent(folder: Path, seconds: float) -> None:
    with contextlib.suppress(OSError):  # a full disk, perhaps the very failure
        write_json(folder / SPENT_NAME, {"seconds": round(seconds, 3)})


def _join(seed: int) -> None:
    """Join the process group, and end through its shutdown, since the interpreter's own exit can abort then."""
    import torch.distributed

    from rlhf.training import cpu, distributed

    if not torch.distributed.is_initialized():
        leave_through(distributed.shutdown)
        cpu.tune()
    distributed.init(seed)


def _finish(folder: Path, package: str, result: StageResult, *, seconds: float) -> None:
    metrics = {name: float(value) for name, value in result.metrics.items()}
    done: Mapping[str, Any] = {
        "stage": package,
        "seconds": round(seconds, 3),
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "models": {label: str(path) for label, path in result.models.items()},
    }
    write_json(folder / DONE_NAME, done)
    if not process.sends_events():
        figures = ", ".join(f"{name} {figure(value)}" for name, value in metrics.items())
        say(f"{package} finished in {duration(seconds)}: {figures}")
        for label, path in result.models.items():
            say(f"  {label}: {path}")


def _die_with_owner() -> None:
    """End this rank when the `train.py` on its machine is gone, even when a launcher in between is not."""
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
