"""The gate before PPO: it stops a reward model that cannot tell good from bad, before PPO spends hours on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf import console
from rlhf.errors import ConfigError
from rlhf.models.names import read_config
from rlhf.stages.spec import ModelConfig
from step3_ppo.config import PPOConfig

FIGURES = {"reward/accuracy", "reward/margin", "reward/length_correlation", "reward/calibration_error"}
WAY_OUT = "PPO would learn from these scores; improve stage 2, or use --force to go on anyway"


def gate_problems(model: ModelConfig, config: PPOConfig) -> list[str]:
    """Why this reward model fails the gate; `model` is its config.json. Empty with `force`."""
    held_out = held_out_figures(model)
    problems = judge(held_out, config)[1] if held_out and not config.force else []
    return [*problems, WAY_OUT] if problems else []


def check_gate(config: PPOConfig) -> None:
    """Print the held-out figures of each model that scores, with ticks. Raises ConfigError when one fails, unless
    `force`. Functions have no such figures and pass."""
    if config.is_scored_by_model:
        _check_model(config, config.reward_model)
    for reward in config.rewards:
        if reward.kind == "model":
            _check_model(config, reward.target, name=reward.name)


def _check_model(config: PPOConfig, model: str, *, name: str = "the reward model") -> None:
    held_out = held_out_figures(read_config(model))
    if not held_out:
        console.warn(f"{name}'s config.json has no held-out figures (it is not from stage 2): the gate is not checked")
        return
    rows, problems = judge(held_out, config)
    console.table(f"the gate: {name} on held-out pairs", ["figure", "value", "wanted", ""], rows)
    for problem in problems if config.force else ():
        console.warn(f"{problem} (--force: going on)")
    if problems and not config.force:
        raise ConfigError(*problems, WAY_OUT)


def held_out_figures(model: ModelConfig) -> Mapping[str, Any]:
    """What stage 2 wrote of held-out pairs into the config.json; empty for a model that is not from stage 2."""
    held_out = model.get("held_out")
    return held_out if isinstance(held_out, Mapping) and held_out.keys() >= FIGURES else {}


@dataclass(frozen=True)
class Check:
    """One figure of the gate; `meaning` is the message if it is not `good`."""

    name: str
    value: float
    wanted: str
    good: bool
    meaning: str


def judge(held_out: Mapping[str, Any], config: PPOConfig) -> tuple[list[list[Any]], list[str]]:
    """The rows of the table, and a message for each figure that fails."""
    accuracy, margin = float(held_out["reward/accuracy"]), float(held_out["reward/margin"])
    length, calibration = float(held_out["reward/length_correlation"]), float(held_out["reward/calibration_error"])
    c = config
    checks = [
        Check(
            "accuracy",
            accuracy,
            f"at least {c.gate_accuracy:g}",
            accuracy >= c.gate_accuracy,
            f"accuracy {accuracy:.3f} on held-out pairs is below {c.gate_accuracy:g}: the reward model can hardly tell "
            "a chosen from a rejected response; train it longer, on more pairs, or look at them with "
            "python -m data.check",
        ),
        Check(
            "margin",
            margin,
            f"above {c.gate_margin:g}",
            margin > c.gate_margin,
            f"the mean margin {margin:.3f} is not above {c.gate_margin:g}: rejected responses score as high as chosen "
            "ones; are the two columns swapped?",
        ),
        Check(
            "length correlation",
            length,
            f"at most ±{c.gate_length_correlation:g}",
            abs(length) <= c.gate_length_correlation,
            f"scores follow length (r = {length:.2f}): PPO would learn to write {'more' if length > 0 else 'less'}, "
            "not better; balance the lengths of chosen and rejected responses",
        ),
        Check(
            "calibration error",
            calibration,
            f"at most {c.gate_calibration_error:g}",
            calibration <= c.gate_calibration_error,
            f"the calibration error {calibration:.2f} is above {c.gate_calibration_error:g}: the reward model is too "
            "sure of its choices; train for fewer epochs or with a lower learning_rate",
        ),
    ]
    rows = [[check.name, check.value, check.wanted, "✓" if check.good else "✗"] for check in checks]
    return rows, [check.meaning for check in checks if not check.good]
