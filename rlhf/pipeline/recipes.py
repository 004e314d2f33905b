"""Recipes: files of settings for the pipeline and its stages, and the choice of one for a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config import read_yaml
from rlhf.errors import UserError, nearest
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.launch import ROOT
from rlhf.stages.spec import StageSpec

RECIPES = ROOT / "scripts" / "recipes"
PIPELINE_NAME = "pipeline.yaml"
_MODEL_FLAGS = ("actor_model", "reward_model", "sft_model", "data_path")


@dataclass(frozen=True)
class Request:
    """What the user typed. With `gpu_memory` (GB of each GPU) the plan is for a machine that is not this one, with GPUs
    of `gpu_tflops`·10¹² operations a second; `fit`: settings are still to be changed until each stage fits, so they may
    differ from those of a run that the folder holds."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    recipe: str | None = None
    overwrite: bool = False
    gpu_memory: float | None = None
    gpu_tflops: float | None = None
    fit: bool = False


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def choose_recipe(request: Request) -> tuple[str | None, str]:
    """The recipe of a run, and a note about it if the user did not name it. It is the one that the output folder was
    started with; or the demo, if no model and no data are named; or the one that is made for the actor."""
    if request.recipe is not None:
        return None if request.recipe == "none" else request.recipe, ""
    output = Path(request.flags.get("output_dir", PipelineConfig.model_fields["output_dir"].default))
    if (output / PIPELINE_NAME).exists() and not request.overwrite:
        known = read_yaml(output / PIPELINE_NAME).get("run", {}).get("recipe")
        return known, f"recipe {known}, with which {output} was started" if known else ""
    if not any(request.flags.get(key) for key in _MODEL_FLAGS) and not any("model=" in item for item in request.sets):
        return "demo", "no model and no data are named: this is the demo (--recipe demo)"
    alias = str(request.flags.get("actor_model", "")).lower()
    if alias in recipe_names():
        return alias, f"recipe {alias}, which is made for this actor; --recipe none takes the built-in defaults"
    return None, ""


def read_recipe(name: str | None, specs: Iterable[StageSpec], problems: list[str]) -> dict[str, Any]:
    if name is None:
        return {}
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        path = Path(name).expanduser()
    if not path.exists():
        names = recipe_names()
        problems.append(
            f"--recipe {name}: there is no file and no recipe of this name{nearest(name, names)} "
            f"(the recipes are {', '.join(names)})"
        )
        return {}
    known = ["pipeline", "prepare", "evaluate", "run", *(spec.package for spec in specs)]
    found: dict[str, Any] = {}
    try:
        values = read_yaml(path)
    except UserError as error:
        problems += error.problems
        return {}
    for section, settings in values.items():
        if section not in known:
            problems.append(f"{path}: '{section}' is not a section of a recipe{nearest(str(section), known)}")
        elif settings is not None and not isinstance(settings, dict):
            problems.append(f"{path}: section '{section}' must hold settings, not {settings!r}")
        elif settings is not None:
            found[section] = settings
    return found


def module_problems(prepare: Mapping[str, Any]) -> list[str]:
    module = str(prepare.get("module", ""))
    try:
        found = bool(module) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    return (
        []
        if found
        else [f"prepare.module={module!r}: there is no such Python module; give one such as scripts.pretrain_demo"]
    )
