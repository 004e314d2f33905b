"""SIGTERM and Ctrl-C during training. A rank only notes the signal; after the step all ranks agree on it, write a
checkpoint and end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlhf import process
from rlhf.command import ECHO_SECONDS
from rlhf.errors import Terminated
from rlhf.training import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupts:
    """Remembers the first signal. A second one ends the process at once, without a checkpoint. In a rank of a launcher
    one within `ECHO_SECONDS` is not a second one: srun and torchrun pass on what it has got itself."""

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        now = time.monotonic()
        if not self.received:
            self.received, self._at = number, now
        elif not process.signals_are_passed_on() or now - self._at > ECHO_SECONDS:
            self.end(number)

    def agreed(self) -> int:
        """The signal that any rank has received, 0 for none; the same on every rank. All ranks call it."""
        return int(distributed.max_over_ranks(self.received))

    @staticmethod
    def end(number: int) -> None:
        """Leave as the signal asks: KeyboardInterrupt (exit code 130) or Terminated (143)."""
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@contextmanager
def noted() -> Iterator[Interrupts]:
    """While inside, signals are noted and do not end the process; on leaving, a noted signal does.

    Python lets only the main thread handle signals. In another thread (of a notebook, say) nothing is noted and signals
    do what they did before.
    """
    interrupts = Interrupts()
    try:
        before = {number: signal.signal(number, interrupts.note) for number in _SIGNALS}
    except ValueError:
        before = {}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupts.received:
        interrupts.end(interrupts.received)
