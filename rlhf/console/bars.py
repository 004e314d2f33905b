"""Progress bars: live on a terminal, as lines in a pipe, as events for `train.py`, or silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rlhf.console.screen import emit, screen
from rlhf.console.text import clean, duration, figure

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_SECONDS = 10.0  # between two lines of a bar in a pipe
EVENT_SECONDS = 0.2  # between two events of a bar


class Bar:
    """The progress of a piece of work, and its latest metrics. This class shows nothing; ranks other than 0 use it."""

    seconds_between = 0.0

    def __init__(self, name: str, *, total: int | None, unit: str, start: int = 0, inner: bool = False) -> None:
        self.name, self.total, self.unit, self.start, self.done, self.inner = name, total, unit, start, start, inner
        self.metrics: dict[str, float] = {}
        self._began = self._last = time.monotonic()
        self._waiting = False

    def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` of `total` are done; `metrics` replace the previous ones."""
        self.done = done
        if metrics:
            self.metrics = {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        self._waiting = now - self._last < self.seconds_between
        if not self._waiting:
            self._last = now
            self._show()

    def open(self) -> None:
        pass

    def close(self) -> None:
        """The last state is always shown."""
        if self._waiting:
            self._show()

    def _show(self) -> None:
        pass

    def line(self) -> str:
        """`train 12/75 step, 0:42 left, sft/loss 2.301`."""
        parts = [f"{self.name} {self.count()}"]
        made, spent = self.done - self.start, time.monotonic() - self._began
        if self.total and made > 0 and self.done < self.total:
            parts.append(f"{duration(spent / made * (self.total - self.done))} left")
        return ", ".join([*parts, *(f"{n} {figure(v)}" for n, v in self.metrics.items())])

    def count(self) -> str:
        if self.total is None:
            return f"{self.done} {self.unit}" if self.done else ""
        return f"{self.done}/{self.total} {self.unit}"


class PlainBar(Bar):
    """Lines, at most one every `PLAIN_SECONDS`, and the last; on standard output unless `stream` is given.

    An inner bar that ends before its first line shows nothing.
    """

    seconds_between = PLAIN_SECONDS

    def __init__(self, name: str, *, stream: TextIO | None = None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._stream = stream

    def close(self) -> None:
        if not (self.inner and time.monotonic() - self._began < self.seconds_between):
            super().close()

    def _show(self) -> None:
        print(clean(self.line()), file=self._stream or sys.stdout, flush=True)


class EventBar(Bar):
    """Events for `train.py`."""

    seconds_between = EVENT_SECONDS

    def open(self) -> None:
        self._send("open")

    def close(self) -> None:
        super().close()
        self._send("close")

    def _show(self) -> None:
        self._send("update")

    def _send(self, what: str) -> None:
        state = {name: getattr(self, name) for name in ("name", "total", "unit", "start", "done", "metrics")}
        emit({"event": "bar", "what": what, **state})


class Live:
    """The one live display of the process, shared by bars inside bars."""

    progress: Progress | None = None


live = Live()


class LiveBar(Bar):
    """A line that is redrawn. An inner bar disappears when it ends; the outermost one stays with its last state."""

    def open(self) -> None:
        from rich import progress as rich_progress
        from rich.table import Column

        if live.progress is None:
            metrics = rich_progress.TextColumn(
                "{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            )
            live.progress = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(bar_width=24),
                rich_progress.TextColumn("{task.fields[count]}", markup=False),
                _times_column(),
                metrics,
                console=screen(),
                expand=True,
            )
            live.progress.start()
        self._task = live.progress.add_task(
            clean(self.name), total=self.total, completed=self.start, metrics="", count=self.count()
        )

    def _show(self) -> None:
        if live.progress is not None:
            text = "  ".join(f"{clean(n)} {figure(v)}" for n, v in self.metrics.items())
            live.progress.update(self._task, completed=self.done, metrics=text, count=self.count())

    def close(self) -> None:
        if live.progress is None:
            return
        if self.inner or not self.done:
            live.progress.remove_task(self._task)
        if not self.inner:
            live.progress.stop()
            live.progress = None


def _times_column() -> Any:
    """The time left; the time spent if the end is not known or is reached."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None or task.finished:
                return Text(duration(int(task.elapsed or 0)))
            return Text(f"{duration(int(task.time_remaining))} left" if task.time_remaining is not None else "")

    return Times()
