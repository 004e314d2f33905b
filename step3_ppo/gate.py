"""The gate before PPO: a reward model that does not know what is better is found out before it costs a night."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf import console
from rlhf.errors import ConfigError
from rlhf.model_names import read_config
from step3_ppo.config import PPOConfig


def check_gate(config: PPOConfig) -> None:
    """Print the reward model's held-out figures as a table of ticks. Raises ConfigError when one fails, unless `force`."""
    held_out = read_config(config.reward_model).get("held_out")
    if not held_out:
        console.warn(
            "the reward model's config.json has no held-out figures: it was not trained here, the gate is open"
        )
        return
    rows, problems = judge(held_out, config)
    console.table("the gate: the reward model on held-out pairs", ["figure", "value", "wanted", ""], rows)
    if not problems:
        return
    if config.force:
        for problem in problems:
            console.warn(f"{problem} (--force: going on)")
        return
    raise ConfigError(
        *problems, "PPO would learn from these scores; mend stage 2, or use --force to go on all the same"
    )


def judge(held_out: Mapping[str, Any], config: PPOConfig) -> tuple[list[list[Any]], list[str]]:
    """The table's rows, and what each failed figure means."""
    accuracy, margin = float(held_out["reward/accuracy"]), float(held_out["reward/margin"])
    length, calibration = float(held_out["reward/length_correlation"]), float(held_out["reward/calibration_error"])
    checks = [
        ("accuracy", accuracy, accuracy >= config.gate_accuracy, f"at least {config.gate_accuracy:g}",
         f"accuracy {accuracy:.3f} on held-out pairs is below {config.gate_accuracy:g}: the reward model can hardly tell a "
         "chosen from a rejected response; train it longer, on more pairs, or look at them with python -m data.check"),
        ("margin", margin, margin > config.gate_margin, f"above {config.gate_margin:g}",
         f"the mean margin {margin:.3f} is not above {config.gate_margin:g}: rejected responses score as high as chosen "
         "ones; are the two columns swapped?"),
        ("length correlation", length, abs(length) <= config.gate_length_correlation,
         f"at most ±{config.gate_length_correlation:g}",
         f"scores follow length (r = {length:.2f}): PPO would learn to write {'more' if length > 0 else 'less'}, not "
         "better; balance the lengths of chosen and rejected responses"),
        ("calibration error", calibration, calibration <= config.gate_calibration_error,
         f"at most {config.gate_calibration_error:g}",
         f"the calibration error {calibration:.2f} is above {config.gate_calibration_error:g}: the reward model is surer "
         "than it is right; train for fewer epochs or with a lower learning_rate"),
    ]  # fmt: skip
    rows = [[name, value, wanted, "✓" if good else "✗"] for name, value, good, wanted, _ in checks]
    return rows, [meaning for _, _, good, _, meaning in checks if not good]
