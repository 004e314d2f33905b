"""The models of a run side by side on prompts: `python -m rlhf.evaluate` as the pipeline's last step."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf import hardware
from rlhf.config import build_leniently
from rlhf.console import say, warn
from rlhf.evaluate import comparison
from rlhf.pipeline.job import StepFailed, as_flags, run_step
from rlhf.pipeline.launch import Placement
from rlhf.pipeline.plan import Plan

EVALUATION_NAME = "evaluation.json"
HELD_OUT_NAME = "held_out_prompts.jsonl"  # what stage 3 may leave in its folder
_LABELS = {"sft": "SFT", "actor": "PPO", "actor_ema": "EMA"}
_SAMPLES = 3
_SMALL = {False: 2e9, True: 40e9}  # bytes of weights that answer a few prompts in a minute: on CPU, on a GPU


def evaluation_problems(settings: Mapping[str, Any], *, pending: bool) -> list[str]:
    """What is wrong with a recipe's `evaluate:`; `pending`: its prompts may still be made by the preparation."""
    from rlhf.evaluate.evaluation import EvaluateConfig

    config, found = build_leniently(EvaluateConfig, settings, where="evaluate")
    for name in ("model", "output"):
        if name in settings:
            found.append(f"evaluate.{name} is worked out by train.py; leave it out")
    about_models = ("--model", "--prompts" if pending else "--model")
    return found + [line for line in config.problems() if not line.startswith(about_models)]


def evaluate(plan: Plan, models: Mapping[str, str]) -> float:
    """Compare base, SFT, PPO and EMA actors as the recipe says. Without a word in it, small models answer a few of the
    prompts that stage 3 held out. An evaluation that is there already is shown, when it is of the same models.

    Returns the seconds that it took now. Raises StepFailed when what the recipe asks for fails."""
    output = plan.pipeline.output_dir
    compared = {label: models[key] for key, label in _LABELS.items() if key in models}
    if "PPO" not in compared:
        return 0.0
    settings = dict(plan.evaluate) if plan.evaluate is not None else _by_itself(plan, models["actor"])
    if settings is None:
        return 0.0
    if plan.base_model:
        compared = {"base": plan.base_model, **compared}
    if "reward" in models:
        settings.setdefault("reward_model", models["reward"])
    before = _evaluated_before(output / EVALUATION_NAME, settings, compared)
    if before is not None:
        comparison.show(before)
        return 0.0
    began = time.monotonic()
    arguments = [word for label, folder in compared.items() for word in ("--model", f"{label}={folder}")]
    arguments += [*as_flags(settings), "--output", str(output / EVALUATION_NAME)]
    say(f"evaluate: {', '.join(compared)}")
    try:
        run_step("evaluate", output, "rlhf.evaluate", arguments, Placement(gpus=plan.placement.gpus), "evaluate.log")
    except StepFailed as failure:
        if plan.evaluate is not None:
            raise
        warn(f"no sample answers: {failure.problems[-1]}; {failure.log} tells more")
    return time.monotonic() - began


def _evaluated_before(path: Path, settings: Mapping[str, Any], compared: Mapping[str, str]) -> dict[str, Any] | None:
    """The evaluation of an earlier run, if it was the same and is younger than the models."""
    newest = max((f.stat().st_mtime for folder in compared.values() for f in Path(folder).glob("*")), default=0.0)
    if not path.exists() or path.stat().st_mtime < newest:
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        same = all(result["settings"][name] == value for name, value in settings.items() if value is not None)
        same = same and [(model["label"], model["model"]) for model in result["models"]] == list(compared.items())
    except (ValueError, KeyError, TypeError):
        return None
    return result if same else None


def _by_itself(plan: Plan, actor: str) -> dict[str, Any] | None:
    """A few held-out prompts, where that is cheap."""
    ppo = next((stage.config for stage in plan.stages if stage.spec.number == 3), None)
    if ppo is None or not (ppo.output_dir / HELD_OUT_NAME).exists():
        return None
    size = sum(file.stat().st_size for file in Path(actor).glob("*.safetensors"))
    if size > _SMALL[plan.placement.gpus and hardware.accelerators() > 0]:
        return None
    return {
        "prompts": str(ppo.output_dir / HELD_OUT_NAME),
        "max_prompts": _SAMPLES,
        "samples": _SAMPLES,
        "max_new_tokens": getattr(ppo, "max_response_length", None),
    }
