"""Columns that belong to all Examples of a row, whatever its shape: options of the chat template, and the thoughts of
its answer."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from data.example import Answer, Example, Remark, Row, RowError, check_text, kind_of
from data.unused import empty
from rlhf.rendering import RESERVED

OPTIONS = ("chat_template_kwargs", "template_kwargs")  # a mapping of them
ONE = ("enable_thinking", "reasoning_effort")  # columns of one of them
ITS_THOUGHTS = "reasoning_content"  # those of the answer beside it


def belongs(kind: str, *, answered: bool) -> bool:
    """Whether a column of this name is one of them; thoughts are where a row has one answer."""
    return kind in (*OPTIONS, *ONE) or (kind == ITS_THOUGHTS and answered)


def set_beside(found: Iterable[Example | Remark], row: Row, columns: Mapping[str, str]) -> Iterator[Example | Remark]:
    """What a shape found, with what the columns (by their normal names) say of it."""
    options = _options(row, columns)
    thoughts = row.get(columns[ITS_THOUGHTS]) if ITS_THOUGHTS in columns else None
    if not empty(thoughts):
        check_text(thoughts, columns[ITS_THOUGHTS])
    for item in found:
        if isinstance(item, Example) and item.prompt:
            if not empty(thoughts) and item.chosen is not None:
                item = replace(item, chosen=Answer(item.chosen, str(thoughts)))
            if options:
                item = replace(item, prompt=({**item.prompt[0], "options": options}, *item.prompt[1:]))
        yield item


def _options(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    given = {kind: row.get(columns[kind]) for kind in ONE if kind in columns}
    found = {kind: value for kind, value in given.items() if not empty(value)}
    for kind, value in found.items():  # a template takes the text "False" for true
        if isinstance(value, str) and (word := value.strip().lower()) in ("true", "false"):
            found[kind] = word == "true"
    for kind in OPTIONS:
        value = row.get(columns[kind]) if kind in columns else None
        if empty(value):
            continue
        if isinstance(value, str):
            value = _read(value)
        if not isinstance(value, Mapping):
            raise RowError(f"{columns[kind]} is {kind_of(value)}, not a mapping of options of the chat template")
        if own := sorted(set(value) & set(RESERVED)):
            raise RowError(f"{columns[kind]} sets {own[0]}, which is no option of a chat template; leave it out")
        found |= {str(name): option for name, option in value.items() if option is not None}
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError):
        raise RowError("the options of the chat template hold a value that is neither text, number nor list") from None


def _read(text: str) -> Any:
    """A mapping written as text, as JSON or as Python writes it; else the text."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text
