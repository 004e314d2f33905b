"""What a person sees: lines, warnings, tables and progress bars; rank 0 only.

One process shows things in one of three ways. On a terminal a live bar; into a pipe plain lines, a few a minute; and
with RLHF_EVENTS=1, set by `train.py` for the ranks that it starts, events: one line of "\\x1e" and JSON each, which
`train.py` shows as if they were its own (`Replay`). Text may come from models and data, so it is never read as markup
and its control characters are dropped.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EVENT_MARK = "\x1e"
PLAIN_SECONDS = 10.0  # between two lines of a bar that is piped
EVENT_SECONDS = 0.2  # between two events of a bar


def say(text: str) -> None:
    """One line (or several) for the user."""
    if _silent():
        return
    if _events():
        _emit({"event": "say", "text": str(text)})
    else:
        _screen().print(_clean(text), markup=False, highlight=False, soft_wrap=True, emoji=False)


def warn(text: str) -> None:
    """A line that asks for attention; it starts with "warning:"."""
    if _silent():
        return
    if _events():
        _emit({"event": "warn", "text": str(text)})
        return
    line = f"warning: {_clean(text)}"
    if _live.progress is not None or sys.stderr.isatty():
        _screen(stderr=_live.progress is None).print(
            line, style="yellow", markup=False, highlight=False, soft_wrap=True, emoji=False
        )
    else:
        print(line, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; numbers are shown with `figure` and stand at the right."""
    if _silent():
        return
    if _events():
        cells = [[_cell(cell) for cell in row] for row in rows]
        _emit({"event": "table", "title": title, "columns": list(columns), "rows": cells})
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(_clean(title)), title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(_is_number(row[index]) for row in rows if index < len(row))
        shown.add_column(Text(_clean(column)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(_clean(figure(cell))) for cell in row))
    _screen().print(shown)


@contextmanager
def progress(name: str, *, total: int | None = None, unit: str = "step", start: int = 0) -> Iterator[Bar]:
    """A bar from `start` (what a resumed run has done already) to `total`; None is an end not known."""
    kind = Bar if _silent() else EventBar if _events() else LiveBar if _interactive() else PlainBar
    bar = kind(name, total=total, unit=unit, start=start, inner=_open_bars.count > 0)
    bar.open()
    _open_bars.count += 1
    try:
        yield bar
    finally:
        _open_bars.count -= 1
        bar.close()


def figure(value: Any) -> str:
    """A number as people read it: whole numbers with thousands apart, others with four digits; text stays."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`4.2 s`, `42 s`, `3:07`, `2:10:00`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if isinstance(seconds, float) and seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- bars ------------------------------------------------------------------------------------------------------------


class _OpenBars:
    count = 0


_open_bars = _OpenBars()


class Bar:
    """How far something is, and its latest metrics. This one shows nothing: the bar of ranks other than 0."""

    seconds_between = 0.0

    def __init__(self, name: str, *, total: int | None, unit: str, start: int = 0, inner: bool = False) -> None:
        self.name, self.total, self.unit, self.start, self.done, self.inner = name, total, unit, start, start, inner
        self.metrics: dict[str, float] = {}
        self._began = self._last = time.monotonic()
        self._waiting = False

    def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` of `total` are done; `metrics` take the place of the ones before."""
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
        return f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"


class PlainBar(Bar):
    """Lines, at most one every `PLAIN_SECONDS`, and the last; on standard output unless `stream` is given.

    A bar inside another that ends before its first line says nothing.
    """

    seconds_between = PLAIN_SECONDS

    def __init__(self, name: str, *, stream: TextIO | None = None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._stream = stream

    def close(self) -> None:
        if not (self.inner and time.monotonic() - self._began < self.seconds_between):
            super().close()

    def _show(self) -> None:
        print(_clean(self.line()), file=self._stream or sys.stdout, flush=True)


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
        _emit({"event": "bar", "what": what, **state})


class _Live:
    """The one live display of the process, shared by bars inside bars."""

    progress: Progress | None = None


_live = _Live()


class LiveBar(Bar):
    """A line that is drawn anew; an inner bar disappears when it ends, the outermost stays as it ended."""

    def open(self) -> None:
        from rich import progress as rich_progress
        from rich.table import Column

        if _live.progress is None:
            metrics = rich_progress.TextColumn(
                "{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            )
            _live.progress = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(bar_width=24),
                rich_progress.TextColumn("{task.fields[count]}", markup=False),
                _times_column(),
                metrics,
                console=_screen(),
                expand=True,
            )
            _live.progress.start()
        self._task = _live.progress.add_task(
            _clean(self.name), total=self.total, completed=self.start, metrics="", count=self.count()
        )

    def _show(self) -> None:
        if _live.progress is not None:
            text = "  ".join(f"{_clean(n)} {figure(v)}" for n, v in self.metrics.items())
            _live.progress.update(self._task, completed=self.done, metrics=text, count=self.count())

    def close(self) -> None:
        if _live.progress is None:
            return
        if self.inner or not self.done:
            _live.progress.remove_task(self._task)
        if not self.inner:
            _live.progress.stop()
            _live.progress = None


def _times_column() -> Any:
    """Time left, or time spent where no end is known or it is reached."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None or task.finished:
                return Text(duration(int(task.elapsed or 0)))
            return Text(f"{duration(int(task.time_remaining))} left" if task.time_remaining is not None else "")

    return Times()


# --- events, as train.py reads them -----------------------------------------------------------------------------------


class Replay:
    """Shows the events in a stage's output on this process's console and writes its plain text to `log`.

    `line()` takes one line of output: an event is shown and logged as text; anything else, a library's chatter, only
    reaches the log. `close()` ends bars that a dying stage left open.
    """

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._bars: dict[str, tuple[Any, Bar, PlainBar]] = {}

    def wait(self, name: str) -> None:
        """On a terminal, show that `name` is at work until `close()`; its own bars appear below."""
        if _interactive() and not _silent():
            shown = progress(name, unit="")
            self._bars[""] = (shown, shown.__enter__(), PlainBar(name, stream=self._log, total=None, unit=""))

    def line(self, text: str) -> None:
        _, mark, body = text.partition(EVENT_MARK)  # a remote launcher puts the host's name before it
        try:
            event = json.loads(body) if mark else None
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._write(text)
        elif event.get("event") == "say":
            say(event["text"])
            self._write(event["text"])
        elif event.get("event") == "warn":
            warn(event["text"])
            self._write(f"warning: {event['text']}")
        elif event.get("event") == "table":
            table(event["title"], event["columns"], event["rows"])
            for row in [[event["title"]], event["columns"], *event["rows"]]:
                self._write("\t".join(map(figure, row)))
        elif event.get("event") == "bar":
            self._bar(event)

    def _bar(self, event: dict[str, Any]) -> None:
        name = event["name"]
        if event["what"] == "open":
            settings = {"total": event["total"], "unit": event["unit"], "start": event["start"]}
            inner = bool(self._bars.keys() - {""})
            shown = progress(name, **settings)
            self._bars[name] = (shown, shown.__enter__(), PlainBar(name, stream=self._log, inner=inner, **settings))
        elif name in self._bars and event["what"] == "update":
            for bar in self._bars[name][1:]:
                bar.update(event["done"], event["metrics"])
        elif name in self._bars:
            self._end(name)

    def _end(self, name: str) -> None:
        shown, _, logged = self._bars.pop(name)
        logged.close()
        shown.__exit__(None, None, None)

    def _write(self, text: str) -> None:
        print(text, file=self._log, flush=True)

    def close(self) -> None:
        for name in reversed(list(self._bars)):
            self._end(name)


# --- where things go --------------------------------------------------------------------------------------------------


def _silent() -> bool:
    return os.environ.get("RANK", "0") not in ("", "0")


def _events() -> bool:
    return os.environ.get("RLHF_EVENTS") == "1"


def _interactive() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _emit(event: Mapping[str, Any]) -> None:
    # one write per event, so that lines of other threads do not end up inside it
    sys.stdout.write(EVENT_MARK + json.dumps(event, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def _screen(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return _console(stream, stream.isatty())


@lru_cache(maxsize=4)
def _console(stream: TextIO, terminal: bool) -> Console:
    from rich.console import Console

    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" instead of ending the run
    return Console(file=stream, width=None if terminal else int(os.environ.get("COLUMNS") or 120))


def _clean(text: Any) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal; newline and tab stay."""
    return "".join(c for c in str(text) if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
