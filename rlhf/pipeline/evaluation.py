"""The comparison of a run's models on the same prompts: `python -m rlhf.evaluate` as the pipeline's last job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf import hardware
from rlhf.config import build_leniently
from rlhf.console import say, warn
from rlhf.evaluate import comparison
from rlhf.pipeline.job import JobFailed, as_flags, run_job
from rlhf.pipeline.plan import Plan, StagePlan

EVALUATION_NAME = "evaluation.json"
_SAMPLES = 3
_SMALL = {False: 2e9, True: 40e9}  # largest model, in bytes, that answers a few prompts in a minute: on a CPU, on a GPU


def evaluation_problems(settings: Mapping[str, Any], *, pending: bool) -> list[str]:
    """Problems of a recipe's `evaluate:`; `pending`: the preparation may still make its prompts."""
    from rlhf.evaluate.evaluation import EvaluateConfig

    config, found = build_leniently(EvaluateConfig, settings, where="evaluate")
    for name in ("model", "output"):
        if name in settings:
            found.append(f"evaluate.{name} is set by train.py; leave it out")
    about_models = ("--model", "--prompts" if pending else "--model")
    return found + [line for line in config.problems() if not line.startswith(about_models)]


def run_evaluation(plan: Plan, models: Mapping[str, str]) -> float:
    """Compare the run's base model and the models that its stages made, as the recipe says. If it says nothing, small
    models answer a few of the prompts that a stage held out. If `evaluation.json` is there and is of the same models
    and settings, it is only shown.

    Returns the seconds that it took, 0 if nothing ran. Raises JobFailed when an evaluation of the recipe fails.
    """
    output = plan.pipeline.output_dir
    last = next((stage for stage in reversed(plan.stages) if stage.spec.evaluation is not None), None)
    if last is None:
        return 0.0
    chosen = {stage.spec.package: stage.config.model_dump() for stage in plan.stages}
    outputs = [(each, chosen.get(spec.package, {})) for spec in plan.specs for each in spec.outputs if each.title]
    compared = {each.titled(values): models[each.label] for each, values in outputs if each.label in models}
    settings = dict(plan.evaluate) if plan.evaluate is not None else _default_settings(plan, last, compared.values())
    if settings is None:
        return 0.0
    if plan.base_model:
        compared = {"base": plan.base_model, **compared}
    settings = _answerable({**last.spec.judges(last.config), **settings})
    before = _evaluated_before(output / EVALUATION_NAME, settings, compared)
    if before is not None:
        comparison.show(before)
        return 0.0
    began = time.monotonic()
    arguments = [word for label, folder in compared.items() for word in ("--model", f"{label}={folder}")]
    arguments += [*as_flags(settings), "--output", str(output / EVALUATION_NAME)]
    say(f"evaluate: {', '.join(compared)}")
    try:
        run_job("evaluate", output, "rlhf.evaluate", arguments, plan.placement.alone, "evaluate.log")
    except JobFailed as failure:
        if plan.evaluate is not None:
            raise
        warn(f"no sample answers: {failure.problems[-1]}; see {failure.log}")
    return time.monotonic() - began


def _answerable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without rewards that read columns which the prompts do not have: a recipe may bring other prompts
    than the stage had."""
    from rlhf.evaluate.evaluation import EvaluateConfig

    config, _ = build_leniently(EvaluateConfig, settings, where="evaluate")
    missing = {spec: lines for spec, lines in config.missing_columns().items() if lines}
    for lines in missing.values():
        warn(f"evaluate: {lines[0]}; the answers are not scored by it")
    left = [reward for reward in config.rewards if reward.spec not in missing]
    without = {
        "reward": not left,
        "reward_timeout": not any(reward.is_called for reward in left),
        "run_generated_code": not any(reward.target == "code" for reward in left),
    }
    if missing:
        settings = {**settings, "reward": [reward.spec for reward in left]}
    return {name: value for name, value in settings.items() if not (missing and without.get(name))}


def _evaluated_before(path: Path, settings: Mapping[str, Any], compared: Mapping[str, str]) -> dict[str, Any] | None:
    """The earlier evaluation, if it has the same settings and models and is newer than the models; else None."""
    from rlhf.evaluate.evaluation import EvaluateConfig

    newest = max((f.stat().st_mtime for folder in compared.values() for f in Path(folder).glob("*")), default=0.0)
    if not path.exists() or path.stat().st_mtime < newest:
        return None
    known = build_leniently(EvaluateConfig, settings, where="evaluate")[0].model_dump(mode="json")  # "~" is the home
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        same = all(result["settings"][name] == known[name] for name, value in settings.items() if value is not None)
        same = same and [(model["label"], model["model"]) for model in result["models"]] == list(compared.items())
    except (ValueError, KeyError, TypeError):
        return None
    return result if same else None


def _default_settings(plan: Plan, stage: StagePlan, folders: Iterable[str]) -> dict[str, Any] | None:
    """Settings for a few prompts that a stage held out; None if that takes long."""
    assert stage.spec.evaluation is not None
    settings = stage.spec.evaluation(stage.config)
    if not Path(settings["prompts"]).exists():
        return None
    sizes = [sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) for folder in folders]
    if max(sizes, default=0) > _SMALL[plan.placement.gpus and hardware.accelerators() > 0]:
        return None
    return {**settings, "max_prompts": _SAMPLES, "samples": _SAMPLES}
