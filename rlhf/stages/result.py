"""What a finished stage leaves in its folder: `done.json`, the completion marker, and the names of its other files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.console.text import figure
from rlhf.errors import DataError
from rlhf.files import write_json

CONFIG_NAME, DONE_NAME, LOG_NAME, DATA_NAME = "config.yaml", "done.json", "log.txt", "data.yaml"


@dataclass
class StageResult:
    """What a stage's `run` returns: its main figures, and the folders of its models by label ("actor")."""

    metrics: dict[str, float] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # of all attempts, also those that were stopped or failed

    def text(self) -> str:
        """The figures in one line."""
        return ", ".join(f"{name} {figure(value)}" for name, value in self.metrics.items())


def write_result(folder: Path, package: str, result: StageResult) -> None:
    """Write the completion marker. A figure that is not finite is written as null, since JSON has no NaN."""
    done: Mapping[str, Any] = {
        "stage": package,
        "seconds": round(result.seconds, 3),
        "metrics": {name: float(v) if math.isfinite(v) else None for name, v in result.metrics.items()},
        "models": {label: str(path) for label, path in result.models.items()},
    }
    write_json(folder / DONE_NAME, done)


def read_result(folder: Path) -> StageResult | None:
    """The result of a finished stage; None without its completion marker. Raises DataError for a damaged one."""
    path = folder / DONE_NAME
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        metrics = {name: math.nan if v is None else v for name, v in value["metrics"].items()}
        return StageResult(metrics=metrics, models=dict(value["models"]), seconds=float(value["seconds"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged; remove it to run the stage again") from None


def is_finished(folder: Path) -> bool:
    return read_result(folder) is not None
