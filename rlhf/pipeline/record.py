"""`pipeline.yaml`: the settings, versions and data that a run was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from rlhf.config import read_yaml
from rlhf.files import write_yaml
from rlhf.pipeline.placed import ROOT
from rlhf.pipeline.placement import placement_text
from rlhf.pipeline.plan import Plan
from rlhf.pipeline.recipes import PIPELINE_NAME
from rlhf.stages.result import DATA_NAME
from rlhf.versions import versions


def record_run(plan: Plan, *, command: str) -> None:
    """Write `pipeline.yaml`: all settings, as a recipe that can be used again; under `run`, versions, command, data."""
    path = plan.pipeline.output_dir / PIPELINE_NAME
    old = read_yaml(path) if path.exists() else {}
    about_this_run = {"output_dir", "stages", "node_rank"}
    sections: dict[str, Any] = {
        "pipeline": plan.pipeline.model_dump(mode="json", exclude_none=True, exclude=about_this_run)
    }
    for key in ("prepare", "evaluate"):
        if getattr(plan, key) is not None:
            sections[key] = getattr(plan, key)
    for stage in plan.stages:
        sections[stage.spec.package] = stage.config.model_dump(mode="json", exclude=set(stage.spec.managed))
    about = {
        "stages": [spec.package for spec in plan.specs],
        "recipe": plan.recipe,
        "command": command,
        "ranks": placement_text(plan.placement),
        "versions": versions(),
        "git": _git_revision(),
        "data": old.get("run", {}).get("data", {}),
    }
    write_yaml(path, {**old, **sections, "run": about})


def record_data(output: Path, package: str, folder: Path) -> None:
    """Copy a stage's record of its data (fingerprints, counts) into `pipeline.yaml`."""
    if (folder / DATA_NAME).exists():
        record = read_yaml(output / PIPELINE_NAME)
        record["run"]["data"][package] = read_yaml(folder / DATA_NAME)
        write_yaml(output / PIPELINE_NAME, record)


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
