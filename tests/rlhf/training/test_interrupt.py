"""Signals during training: the first is noted, and what counts as a second."""

from __future__ import annotations

import signal

import pytest

from rlhf import process
from rlhf.errors import Terminated
from rlhf.training import interrupt
from rlhf.training.interrupt import Interrupts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    return now


def test_an_echo_is_no_second_signal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """srun and torchrun pass on a SIGTERM that the ranks have got themselves: each rank got two within 10 ms, and ended
    without a checkpoint."""
    monkeypatch.setattr(interrupt.process, "signals_are_passed_on", lambda: True)
    interrupts = Interrupts()
    interrupts.note(signal.SIGTERM, None)
    clock[0] += 0.01
    interrupts.note(signal.SIGTERM, None)
    clock[0] += 2.0
    interrupts.note(signal.SIGINT, None)
    assert interrupts.received == signal.SIGTERM
    clock[0] += 4.0
    with pytest.raises(Terminated):
        interrupts.note(signal.SIGTERM, None)


def test_a_process_alone_ends_at_the_second_signal(
    one_rank: None, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody at its terminal presses Ctrl-C twice. A lone stage sets RANK and WORLD_SIZE itself, and its second
    signal was taken for an echo."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert process.launched()
    interrupts = Interrupts()
    interrupts.note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.note(signal.SIGINT, None)
