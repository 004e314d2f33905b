"""Events of a stage come out of train.py as they went in."""

from __future__ import annotations

import io
import json

import pytest

from rlhf import console
from rlhf.console.replay import Replay
from rlhf.console.screen import EVENT_MARK


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
