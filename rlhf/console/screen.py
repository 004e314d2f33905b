"""Where output goes: this process's own terminal or pipe, or as events to the `train.py` that started it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

EVENT_MARK = "\x1e"


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


def silent() -> bool:
    return os.environ.get("RANK", "0") not in ("", "0")


def events() -> bool:
    return os.environ.get("RLHF_EVENTS") == "1"


def interactive() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def emit(event: Mapping[str, Any]) -> None:
    # one write per event, so that lines of other threads do not end up inside it
    sys.stdout.write(EVENT_MARK + json.dumps(event, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def screen(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return _console(stream, stream.isatty())


@lru_cache(maxsize=4)
def _console(stream: TextIO, terminal: bool) -> Console:
    from rich.console import Console

    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" instead of ending the run
    return Console(file=stream, width=None if terminal else int(os.environ.get("COLUMNS") or 120))


def clean(text: Any) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal; newline and tab stay."""
    return "".join(c for c in str(text) if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
