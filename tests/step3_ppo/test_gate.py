"""The gate before PPO stops on a reward model that does not know what is better, and says what that means."""

from __future__ import annotations

import json

import pytest

from rlhf.errors import ConfigError
from step3_ppo.config import PPOConfig
from step3_ppo.gate import check_gate, judge

GOOD = {
    "reward/accuracy": 0.7,
    "reward/margin": 0.8,
    "reward/length_correlation": 0.2,
    "reward/calibration_error": 0.05,
}


@pytest.mark.parametrize(
    ("figure", "value", "says"),
    [
        ("reward/accuracy", 0.51, "can hardly tell a chosen from a rejected"),
        ("reward/margin", -0.1, "are the two columns swapped"),
        ("reward/length_correlation", 0.9, "learn to write more"),
        ("reward/length_correlation", -0.9, "learn to write less"),
        ("reward/calibration_error", 0.4, "too sure of its choices"),
    ],
)
def test_each_figure_that_fails_says_what_it_means(figure, value, says):
    rows, problems = judge({**GOOD, figure: value}, PPOConfig())
    assert len(problems) == 1
    assert says in problems[0]
    assert [row[3] for row in rows].count("✗") == 1


def test_thresholds_themselves_pass():
    """At least and at most take the threshold in; the margin must be above its own."""
    config = PPOConfig(gate_accuracy=0.7, gate_length_correlation=0.2, gate_calibration_error=0.05, gate_margin=0.8)
    assert [row[0] for row in judge(GOOD, config)[0] if row[3] == "✗"] == ["margin"]


def write_model(folder, held_out):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"held_out": held_out} if held_out else {}))
    return str(folder)


def test_a_bad_model_stops_the_run_and_names_the_way_on(tmp_path):
    model = write_model(tmp_path / "bad", {**GOOD, "reward/accuracy": 0.5, "reward/margin": -1.0})
    with pytest.raises(ConfigError) as stopped:
        check_gate(PPOConfig(reward_model=model))
    assert len(stopped.value.problems) == 3  # both figures, and the way on
    assert "--force" in stopped.value.problems[-1]


def test_force_and_a_model_from_elsewhere_go_on_with_a_warning(tmp_path, capsys):
    bad = write_model(tmp_path / "bad", {**GOOD, "reward/accuracy": 0.5})
    check_gate(PPOConfig(reward_model=bad, force=True))
    foreign = write_model(tmp_path / "foreign", None)
    check_gate(PPOConfig(reward_model=foreign))
    said = capsys.readouterr().err
    assert "0.500" in said
    assert "going on" in said
    assert "no held-out figures" in said


def test_a_good_model_passes_without_a_warning(tmp_path, capsys):
    check_gate(PPOConfig(reward_model=write_model(tmp_path / "good", GOOD)))
    assert "warning" not in capsys.readouterr().err
