"""Means, errors and gains, worked by hand."""

from __future__ import annotations

import pytest

from rlhf.evaluate.comparison import compare, mean_and_error, plus_minus, score_texts, spread, summary


def test_mean_and_standard_error():
    """0, 1, 2: the mean is 1, the variance with n - 1 is 1, so the error of the mean is 1/√3."""
    assert mean_and_error([0, 1, 2]) == {"mean": 1.0, "stderr": pytest.approx(3**-0.5)}
    assert mean_and_error([0.3]) == {"mean": 0.3, "stderr": None}


def test_a_model_is_held_to_the_first_prompt_by_prompt():
    """Gains 0.2 and 0: mean 0.1, each 0.1 away, so the error is √(0.02/1/2) = 0.1. A win and a tie are 0.75."""
    figures = compare([0.4, 0.5], [0.2, 0.5])
    assert figures["mean"] == pytest.approx(0.45)
    assert figures["gain"] == {"mean": pytest.approx(0.1), "stderr": pytest.approx(0.1)}
    assert figures["win_rate"]["mean"] == 0.75


def test_figures_as_text():
    assert plus_minus({"mean": 0.5, "stderr": 0.0312}) == "0.500 ± 0.031"
    assert plus_minus({"mean": 0.625, "stderr": None}, percent=True) == "62%"


def test_the_table_shows_the_parts_beside_their_score():
    """A polite answer to another question once had a good score, and no figure said why."""
    score = {"mean": 0.5, "stderr": 0.1, "win_rate": {"mean": 0.75, "stderr": 0.1}}
    parts = {"correct": {"mean": 0.25, "stderr": 0.1}, "courteous": {"mean": 1.0, "stderr": None}}
    model = {"label": "PPO", "score": {**score, "parts": parts}, "reward_model": score, "length": score, "end_rate": 1}
    columns, (row,) = summary({"models": [model]})
    assert columns[:6] == ["model", "score", "wins", "correct", "courteous", "reward model"]
    assert row[:6] == ["PPO", "0.500 ± 0.100", "–", "0.25", "1.00", "0.500 ± 0.100"]
    assert score_texts({"score": 0.7, "parts": {"correct": 0.25}}) == ["score 0.700", "correct 0.25"]


def test_samples_are_spread_over_the_prompts():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 6) == [0, 1]
    assert spread(2, 0) == []
