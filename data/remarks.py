"""What a user should know of a source, in the words that the run, data.check and data.show all use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.labels import BAD_ALONE
from rlhf.console import say, warn

REASONS = 3  # that are given for bad rows


def remarks_of(info: Mapping[str, Any], kinds: Iterable[str | None], elsewhere: Sequence[str] = ()) -> dict[str, int]:
    """The remarks of a store's info that hold where stages read rows of these kinds, and others read the columns
    `elsewhere`. Of single responses the bad ones that stand alone are learned, too."""
    untrue = [BAD_ALONE] if "unpaired" in kinds else []
    columns = "|".join(".*" if column == "*" else re.escape(column) for column in elsewhere)
    read = re.compile(f"column '({columns})' is not used" if columns else "(?!)")
    return {what: rows for what, rows in info["remarks"].items() if what not in untrue and not read.match(what)}


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
