"""A recipe's `prepare:`: a module that runs once, before the stages, and makes what they start from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.console import say
from rlhf.console.text import duration
from rlhf.errors import ConfigError
from rlhf.files import claim_folder, remove_unfinished, write_json
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.job import as_flags, run_job
from rlhf.pipeline.placed import Placement
from rlhf.stages.result import DONE_NAME

FOLDER = "prepare"
RESULT_NAME = "prepare.json"  # what a module may write instead of a last line


def marker(output: Path) -> Path:
    """The completion marker, which holds the result."""
    return output / FOLDER / DONE_NAME


def prepared_before(output: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of an earlier run; None if it has not run. Raises ConfigError when it ran with other settings."""
    path = marker(output)
    if not path.exists():
        return None
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        old, values = done["settings"], dict(done["values"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; remove it to prepare again") from None
    if old != settings:
        raise ConfigError(
            f"{path.parent} was prepared with other settings ({_listed(old)}; now {_listed(settings)}); "
            "use the same ones, --overwrite to start again, or another output folder"
        )
    return values


def seconds(output: Path) -> float:
    """How long the preparation took; 0 when it has not run."""
    path = marker(output)
    return float(json.loads(path.read_text(encoding="utf-8")).get("seconds", 0.0)) if path.exists() else 0.0


def prepare(output: Path, settings: Mapping[str, Any], placement: Placement) -> dict[str, Any]:
    """Run the module where `placement` says, unless it has run before. Returns values of pipeline settings, and those
    of `evaluate:`.

    The module gets its settings as flags, and `--output-dir`. Its result is a JSON object, on its last line or in
    `prepare.json`. Raises JobFailed, and ConfigError when the result is empty or names unknown settings.
    """
    before = prepared_before(output, settings)
    if before is not None:
        say(f"prepare: finished before, {output / FOLDER}")
        return before
    module, folder = str(settings["module"]), output / FOLDER
    claim_folder(folder)
    remove_unfinished(folder)
    (folder / RESULT_NAME).unlink(missing_ok=True)
    say(f"prepare: {module}")
    began = time.monotonic()
    flags = as_flags({name: value for name, value in settings.items() if name != "module"})
    lines = run_job("prepare", folder, module, ["--output-dir", str(folder), *flags], placement)
    values = _json_object(lines) or _json_file(folder / RESULT_NAME)
    unknown = [key for key in values if key not in PipelineConfig.model_fields and key != "evaluate"]
    if not values or unknown:
        said = f"names {', '.join(unknown)}, which are not settings of the pipeline" if unknown else "returned nothing"
        raise ConfigError(f"prepare: {module} {said}; its last line must be a JSON object such as {{'actor_model': …}}")
    spent = time.monotonic() - began
    write_json(marker(output), {"settings": dict(settings), "values": values, "seconds": round(spent, 3)})
    say(f"prepare finished in {duration(spent)}")
    return values


def _json_object(lines: Sequence[str]) -> dict[str, Any]:
    """The last line that is a JSON object."""
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def _json_file(path: Path) -> dict[str, Any]:
    return _json_object([path.read_text(encoding="utf-8")]) if path.exists() else {}


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in settings.items())
