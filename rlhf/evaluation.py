"""The models of a run side by side on prompts: runs `python -m rlhf.evaluate` and shows what it wrote."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.console import say, warn
from rlhf.launch import Placement
from rlhf.plan import Plan
from rlhf.step import StepFailed, as_flags, run_step

EVALUATION_NAME = "evaluation.json"
HELD_OUT_PROMPTS = Path("step3_ppo") / "held_out_prompts.jsonl"
_LABELS = {"sft": "SFT", "actor": "PPO", "actor_ema": "EMA"}
_SAMPLES = 3


def evaluate(plan: Plan, models: Mapping[str, str]) -> dict[str, Any] | None:
    """Compare base, SFT, PPO and EMA actors as the recipe says; without a word in it, a few held-out prompts if stage 3
    left some. None where there is nothing to compare. Raises StepFailed when what the recipe asks for fails."""
    output = plan.pipeline.output_dir
    compared = {label: models[key] for key, label in _LABELS.items() if key in models}
    if importlib.util.find_spec("rlhf.evaluate") is None or "PPO" not in compared:
        return None
    settings = plan.evaluate
    if settings is None:
        prompts = output / HELD_OUT_PROMPTS
        if not prompts.exists():
            return None
        settings = {"prompts": str(prompts), "max_prompts": _SAMPLES, "samples": _SAMPLES}
    elif plan.base_model:
        compared = {"base": plan.base_model, **compared}
    arguments = [word for label, folder in compared.items() for word in ("--model", f"{label}={folder}")]
    arguments += [*as_flags(settings), "--output", str(output / EVALUATION_NAME)]
    say(f"evaluate: {', '.join(compared)}")
    try:
        run_step("evaluate", output, "rlhf.evaluate", arguments, Placement(gpus=plan.placement.gpus), "evaluate.log")
    except StepFailed as failure:
        if plan.evaluate is not None:
            raise
        warn(f"no samples: {failure.problems[-1]}; {failure.log} tells more")
        return None
    return json.loads((output / EVALUATION_NAME).read_text(encoding="utf-8"))


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """The scores of the models, and sample answers side by side."""
