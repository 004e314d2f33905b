"""What a user should know of a source, in the words that the run, data.check and data.show all use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.console import say, warn

REASONS = 3  # that are given for bad rows


def counted(counts: Mapping[str, int]) -> list[str]:
    return [f"{count:,} × {what}" for what, count in counts.items()]


def announce_remarks(name: str, info: Mapping[str, Any]) -> None:
    """Print what became of a source's rows: `bad_rows` with `bad`, `remarks` and `silent_rows` of a store's info."""
    if info["bad_rows"]:
        reasons = "; ".join(counted(info["bad"])[:REASONS])
        warn(f"{name}: {info['bad_rows']:,} bad rows were left out ({reasons})")
    for line in counted(info["remarks"]):
        warn(f"{name}: {line}")
    if info["silent_rows"]:
        say(f"{name}: {info['silent_rows']:,} rows gave nothing to learn from (ties, blanks, …)")
