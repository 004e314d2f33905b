"""Numbers, times and text from outside, as they are shown to people."""

from __future__ import annotations

import re
from typing import Any


def figure(value: Any) -> str:
    """A number for people: 12345 → "12,345", 0.123456 → "0.1235"; text is unchanged, None is empty."""
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


def clean(text: Any) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal; newline and tab stay.

    A byte of a file's name that is not UTF-8, which Python holds as half of a surrogate pair, becomes `\\xe9`.
    """
    kept = "".join(c for c in str(text) if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
    return kept if kept.isascii() else re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", kept)
