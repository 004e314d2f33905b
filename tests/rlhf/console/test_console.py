"""What a person sees: text of others is harmless, other ranks are silent, events come out as they went in."""

from __future__ import annotations

import io
import json

import pytest

from rlhf import console
from rlhf.console import bars
from rlhf.console.replay import Replay
from rlhf.console.screen import EVENT_MARK
from rlhf.console.text import duration, figure


def test_text_of_models_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer such as "[red]" must be shown as it is, and "\\x1b[2J" must not clear the user's terminal."""
    console.say("[bold]kept[/bold] :smile: \x1b[2J\x07end\n\tsecond line")
    console.table("[t]", ["[c]"], [["[cell]\x1b[31m"]])
    console.warn("[w]\x1b")
    shown = capsys.readouterr()
    assert "[bold]kept[/bold] :smile: [2Jend\n        second line" in shown.out
    assert "[t]" in shown.out
    assert "[c]" in shown.out
    assert "[cell][31m" in shown.out
    assert shown.err == "warning: [w]\n"
    assert "\x1b" not in shown.out


def test_long_lines_are_not_broken_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A path or a command that was folded at column 80 could not be copied."""
    console.say("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    console.say("a")
    console.warn("b")
    console.table("c", ["d"], [["e"]])
    with console.progress("f", total=1) as bar:
        bar.update(1, {"g": 1.0})
    assert capsys.readouterr() == ("", "")


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


def test_events_are_shown_and_logged_by_train(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage under RLHF_EVENTS=1 writes marked JSON; its reader shows the same lines, chatter only reaches the log."""
    monkeypatch.setenv("RLHF_EVENTS", "1")
    console.say("matched [12] modules\nsecond")
    console.table("rows", ["source", "share"], [["a.jsonl", 0.25], ["b.jsonl", None]])
    with console.progress("train", total=2) as bar:
        bar.update(2, {"sft/loss": float("nan")})
    written = capsys.readouterr().out.rstrip("\n").split("\n")
    assert all(line.startswith(EVENT_MARK) for line in written)
    assert json.loads(written[0][1:]) == {"event": "say", "text": "matched [12] modules\nsecond"}

    monkeypatch.delenv("RLHF_EVENTS")
    log = io.StringIO()
    replay = Replay(log)
    for line in ["loading weights: 100%", *written, EVENT_MARK + "broken {"]:
        replay.line(line)
    replay.close()
    shown = capsys.readouterr().out
    assert "matched [12] modules\nsecond\n" in shown
    assert "a.jsonl" in shown
    assert "train 2/2 step, sft/loss nan" in shown
    assert "loading weights" not in shown
    assert log.getvalue().rstrip("\n").split("\n") == [
        "loading weights: 100%",
        "matched [12] modules",
        "second",
        "rows",
        "source\tshare",
        "a.jsonl\t0.25",
        "b.jsonl\t",
        "train 2/2 step, sft/loss nan",
        EVENT_MARK + "broken {",
    ]


def test_a_bar_of_a_stage_that_died_is_closed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its "close" never comes; the next stage's bar must not become an inner one of it."""
    monkeypatch.setenv("RLHF_EVENTS", "1")
    with console.progress("train", total=5) as bar:
        bar.update(3)
    events = capsys.readouterr().out.split("\n")[:-2]
    monkeypatch.delenv("RLHF_EVENTS")
    replay = Replay(io.StringIO())
    for line in events:
        replay.line(line)
    replay.close()
    assert capsys.readouterr().out.startswith("train 3/5 step")
    with console.progress("next", total=1) as bar:
        bar.update(1)
    assert capsys.readouterr().out == "next 1/1 step\n"


def test_figures() -> None:
    shown = [figure(v) for v in (1234567, 0.123456, 1e-5, True, None, "text", 12.0)]
    assert shown == ["1,234,567", "0.1235", "1e-05", "True", "", "text", "12"]
    assert [duration(s) for s in (4.21, 42, 187, 7800)] == ["4.2 s", "42 s", "3:07", "2:10:00"]
