"""Files of other tools and of well-known datasets: rows as their documentation has them, and what we read of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Read = tuple[str, str | None, str | None]  # the prompt ("s:… | u:… | a:…"), chosen, rejected


@dataclass(frozen=True)
class File:
    """Rows of one format; what is read of them, what is said of the rest, or why they are refused.

    rows      of the file, all of one format
    read      of each Example
    remarks   the beginnings of all warnings
    unread    the columns that the announcement names as not read
    refused   the beginning of the refusal's line, after the place
    columns   `--columns`
    hint      the `--columns` that the refusal names, which leads to `read`
    """

    rows: list[dict[str, Any]]
    read: list[Read] = field(default_factory=list)
    remarks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    refused: str = ""
    columns: str = ""
    hint: str = ""


def s(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def u(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def a(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def h(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def g(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def files() -> dict[str, File]:
    """Every format: name → file."""
    from tests.helpers.peers import bad, hub, judged, reasoning, talks, tools, votes

    found: dict[str, File] = {}
    for module in (tools, hub, votes, reasoning, bad, talks, judged):
        assert not found.keys() & module.FILES.keys()
        found |= module.FILES
    return found
