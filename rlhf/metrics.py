"""Metrics of a stage: `metrics.jsonl` always, TensorBoard and Weights & Biases on request.

One line per logged step: {"step": 12, "sft/loss": 2.31, ...}. A figure that is not finite is written as null, since
JSON has no NaN, and read back as NaN. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf import process
from rlhf.errors import ConfigError, DataError
from rlhf.json_lines import json_line, read_json_lines, write_json_lines

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to `folder/metrics.jsonl` on rank 0; on other ranks it does nothing.

    `resume_step` is the step of the checkpoint that a run continues from: rows after it are removed. None starts an
    empty file. The trackers show `config` beside the curves.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trackers: Iterable[str] = (),
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ) -> None:
        self._file = None
        self._trackers: list[Any] = []
        if not process.is_main():
            return
        problems = tracker_problems(trackers)
        if problems:
            raise ConfigError(*problems)
        path = folder / FILE_NAME
        kept = [] if resume_step is None or not path.exists() else [r for r in _rows(path) if r["step"] <= resume_step]
        write_json_lines(path, kept)
        self._file = path.open("a", encoding="utf-8")
        first = 0 if resume_step is None else resume_step + 1
        self._trackers = [_tracker(name, folder, config or {}, first_step=first) for name in trackers]

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the figures of one step; every value is a number."""
        if self._file is None:
            return
        row = {name: _number(value) for name, value in metrics.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in row.items()}
        self._file.write(json_line({"step": int(step), **finite}))
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(row, step=step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, with NaN for null; a last line that a killed run left half-written is dropped.

    Raises DataError when the file cannot be read or another line is broken.
    """
    return [{name: math.nan if v is None else v for name, v in row.items()} for row in _rows(path)]


def tracker_problems(trackers: Iterable[str]) -> list[str]:
    """Trackers whose package is not installed; looked up without importing."""
    packages = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
    return [
        f"trackers: {name} is not installed; pip install {packages[name][0]}, or leave it out"
        for name in trackers
        if not any(importlib.util.find_spec(package) for package in packages[name])
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    broken = None  # a line that is not a row; the file's last one may be, so it counts when another follows
    try:
        for line in read_json_lines(path):
            if broken is not None:
                shown = broken.content.decode("utf-8", errors="replace")[:60]
                raise DataError(f"{path}, line {broken.number} is not a row of metrics: {shown!r}")
            try:
                row = line.value()
                row["step"] += 0
            except (ValueError, TypeError, KeyError):
                broken = line
            else:
                rows.append(row)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    return rows


def _number(value: Any) -> int | float:
    if isinstance(value, (bool, int)):
        return int(value)
    return float(value)  # also torch and numpy scalars


def _tracker(name: str, folder: Path, config: Mapping[str, Any], *, first_step: int) -> Any:
    # imports torch, so only here
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    flat = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items() if v is not None}
    if name == "tensorboard":
        tracker: Any = TensorBoardTracker("tensorboard", str(folder), purge_step=first_step)
    else:
        tracker = WandBTracker(run_name=f"{folder.parent.name}-{folder.name}", dir=str(folder))
    tracker.start()
    tracker.store_init_configuration(flat)
    return tracker
