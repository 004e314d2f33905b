"""The checks for the day of a GPU run, small, on the pretended one; what is wrong there is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scripts import gpu_day, gpu_day_checks

pytestmark = pytest.mark.slow


def _said(folder: Path) -> list[str]:
    lines: list[str] = []
    with mock.patch.object(gpu_day_checks, "say", lines.append):
        gpu_day_checks.budget(folder / "budget")
        gpu_day_checks.decode(folder / "decode", True)
        gpu_day_checks.ppo(folder / "ppo", {}, True)
        (folder / "memory").mkdir()
        gpu_day_checks.memory(folder / "memory", "opt 6M, ZeRO-2")
    return lines


def test_memory_and_seconds_are_told(run_on_gpu: Callable[..., list[Any]], tmp_path: Path) -> None:
    (lines,) = run_on_gpu(_said, tmp_path)
    assert lines[0].endswith(": good")
    assert sum("ms a token; weights alone" in line for line in lines) == 4
    (graphs,) = (line for line in lines if " graphs, " in line)
    assert int(graphs.split()[0]) > 0 and graphs.endswith("100% of the tokens as without: good")
    assert lines[-1].startswith("opt 6M, ZeRO-2, 2") and lines[-1].endswith(": good")
    iterations = [line for line in lines if "iteration " in line]
    rooms = [float(line.rpartition(" GB")[0].rpartition(" ")[2]) for line in iterations]
    assert len(rooms) == 3 and min(rooms) > 0.99 * max(rooms), "the room for the cache stays the same"
    phases = ["rollout", "score", "train actor", "step actor", "train critic", "step critic"]
    assert [line.strip().partition(":")[0] for line in lines if "GB held" in line] == phases * 3


def test_what_is_bad_is_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that ends well but says BAD has failed, as has one that ends with an error."""
    for line, code, good in (("| fine: good", 0, True), ("| BAD: other", 0, False), ("an Error", 1, False)):

        def ended(words: Any, *, stdout: Any, line: str = line, code: int = code, **options: Any) -> Any:
            stdout.write(line + "\n")
            return mock.Mock(returncode=code)

        monkeypatch.setattr(gpu_day.subprocess, "run", ended)
        assert gpu_day.show("budget", [], tmp_path / "budget-0", 5) == good
