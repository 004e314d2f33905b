"""What a person sees: text of others is harmless, and other ranks are silent."""

from __future__ import annotations

import pytest

from rlhf import console


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
    monkeypatch.setattr("rlhf.process._Program.is_rank", True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    console.say("a")
    console.warn("b")
    console.table("c", ["d"], [["e"]])
    with console.progress("f", total=1) as bar:
        bar.update(1, {"g": 1.0})
    assert capsys.readouterr() == ("", "")
