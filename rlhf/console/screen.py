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
