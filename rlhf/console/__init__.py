"""Output for people: lines, warnings, tables and progress bars; rank 0 only.

A process shows it in one of three ways. On a terminal: live bars. In a pipe: plain lines, a few a minute. With
RLHF_EVENTS=1, which `train.py` sets for the ranks that it starts: events, each one line of "\\x1e" and JSON, which
`train.py` shows as its own output (`console/replay.py`). Text may come from models and data, so it is never read as
markup, and its control characters are dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rlhf import process
from rlhf.console.bars import Bar, EventBar, LiveBar, PlainBar, live
from rlhf.console.screen import emit, interactive
from rlhf.console.screen import screen as own_screen
from rlhf.console.text import clean, figure

if TYPE_CHECKING:
    from rich.console import Console


class _OpenBars:
    count = 0


_open_bars = _OpenBars()


def say(text: str) -> None:
    """One line (or several) for the user."""
    if not process.is_main():
        return
    if process.sends_events():
        emit({"event": "say", "text": str(text)})
    else:
        _print(clean(text))


def warn(text: str) -> None:
    """A line that asks for attention; it starts with "warning:"."""
    if not process.is_main():
        return
    if process.sends_events():
        emit({"event": "warn", "text": str(text)})
        return
    line = f"warning: {clean(text)}"
    if live.progress is not None or sys.stderr.isatty():
        _print(line, style="yellow", stderr=True)
    else:
        print(line, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; numbers are shown with `figure`, at the right of their column."""
    if not process.is_main():
        return
    if process.sends_events():
        cells = [[_cell(cell) for cell in row] for row in rows]
        emit({"event": "table", "title": title, "columns": list(columns), "rows": cells})
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(clean(title)), title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(_is_number(row[index]) for row in rows if index < len(row))
        shown.add_column(Text(clean(column)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(clean(figure(cell))) for cell in row))
    _target().print(shown)


@contextmanager
def progress(name: str, *, total: int | None = None, unit: str = "step", start: int = 0) -> Iterator[Bar]:
    """A bar from `start` (what a resumed run has done already) to `total`; None: the end is not known."""
    if not process.is_main():
        kind = Bar
    else:
        kind = EventBar if process.sends_events() else LiveBar if interactive() else PlainBar
    bar = kind(name, total=total, unit=unit, start=start, inner=_open_bars.count > 0)
    bar.open()
    _open_bars.count += 1
    try:
        yield bar
    finally:
        _open_bars.count -= 1
        bar.close()


def _print(text: str, *, style: str | None = None, stderr: bool = False) -> None:
    # not broken into lines, so that paths and commands can be copied
    _target(stderr).print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _target(stderr: bool = False) -> Console:
    """The console that draws the live bar, if there is one: only that console can write above the bar."""
    return live.progress.console if live.progress is not None else own_screen(stderr=stderr)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
