"""Columns of the user's data that go with a prompt to reward functions, through store, tokens and rollout, as JSON."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data.example import Example, Row, RowError, kind_of
from rlhf.errors import nearest

_OURS = ("prompt", "completion")  # a function gets the prompt and the completion in other ways


@dataclass(frozen=True)
class Kept:
    """What is kept of each row: the columns of these names, or, with `everything`, all.

    `needed` are columns that at least one source must have, with what reads each: {"solution": "--reward f.py:f"}.
    """

    names: tuple[str, ...] = ()
    everything: bool = False
    needed: tuple[tuple[str, str], ...] = ()

    def key(self) -> dict[str, Any]:
        """What the stored rows depend on."""
        return {"names": sorted(self.names), "everything": self.everything}

    def reads(self, column: str) -> bool:
        return self.everything or column in self.names

    def problems(self, columns: Iterable[str]) -> list[str]:
        """A line for each needed column that is not among those of the data."""
        there = sorted(columns)
        return [
            f"{reader} reads the column '{name}', which the data do not have{nearest(name, there)} "
            f"(they have {', '.join(there) or 'none'})"
            for name, reader in self.needed
            if name not in there
        ]


def kept_json(row: Row, example: Example, kept: Kept) -> str:
    """{"text": …, "columns": …}: whether the prompt is text in the data, and the columns that the row has. Raises
    RowError for a value that is neither text, number, list nor mapping."""
    wanted = {
        name: value for name, value in row.items() if kept.reads(name) and (name not in _OURS or name in kept.names)
    }
    is_text = len(example.prompt) == 1 and not any(_is_conversation(value) for value in row.values())
    try:
        return json.dumps({"text": is_text, "columns": wanted}, default=_plain)
    except (TypeError, ValueError) as error:
        raise RowError(f"cannot be kept for the rewards: {error}") from None


def read_kept(text: str) -> tuple[bool, dict[str, Any]]:
    """Whether the prompt is text, and the columns; of an empty `text`, a conversation without columns."""
    found = json.loads(text) if text else {"text": False, "columns": {}}
    return found["text"], found["columns"]


def _is_conversation(value: Any) -> bool:
    turns = [value] if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else []
    return any(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns)


def _plain(value: Any) -> Any:
    """A value that JSON does not have, as one that it has."""
    if hasattr(value, "tolist"):  # of NumPy
        return value.tolist()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    raise TypeError(f"a column holds {kind_of(value)}")
