"""Bars in a pipe: few lines, a last state, and an estimate from what was done in this process."""

from __future__ import annotations

import pytest

from rlhf import console
from rlhf.console import bars


def test_a_piped_bar_says_little_and_its_last_state(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    with console.progress("train", total=100, unit="step") as bar:
        for step in range(1, 101):
            clock[0] += 0.25  # 25 seconds in all
            bar.update(step, {"sft/loss": 1 / step})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train 40/100 step, 15 s left, sft/loss 0.025"
    assert len(lines) == 3
    assert lines[-1] == "train 100/100 step, sft/loss 0.01"


def test_an_inner_bar_that_is_quick_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each PPO iteration has a rollout bar inside; hundreds of lines "rollout 4/4" would bury the rest."""
    with console.progress("outer", total=2) as outer:
        for step in (1, 2):
            with console.progress("inner", total=1) as inner:
                inner.update(1)
            outer.update(step)
    assert capsys.readouterr().out == "outer 2/2 step\n"


def test_a_resumed_bar_estimates_from_what_it_did_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 steps came from a checkpoint; 5 steps in 10 seconds leave 5 steps or 10 seconds, not half a second."""
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    bar = bars.Bar("train", total=100, unit="step", start=90)
    clock[0] = 10.0
    bar.update(95)
    assert bar.line() == "train 95/100 step, 10 s left"
