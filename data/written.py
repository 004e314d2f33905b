"""Lists that a table holds as text, `"[{'role': 'user', 'content': 'hi'}]"`, as tables without lists write them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from data.example import LARGEST_TEXT, RowError

LISTS = ("messages", "rejected_messages", "answers", "scores", "ranks", "history")  # columns that hold nothing else
TEXTS = ("prompt", "chosen", "rejected", "first", "second")  # columns that hold text or messages
BEGINS_AS_MESSAGES = re.compile(r"""\s*(array\()?\[?\s*\{\s*(['"])(role|content|from|value)\2\s*:""")
BEGINS_AS_LIST = re.compile(r"\s*(array\()?\[")
NOT_A_NUMBER = re.compile(r"\b(nan|null|none)\b", re.IGNORECASE)


def read_written(value: str, name: str) -> Any:
    """The list (or the message) that `value` spells in the column `name`; None if it is plain text. Raises RowError for
    what looks like a list and cannot be read."""
    if name in LISTS:
        if not BEGINS_AS_LIST.match(value):
            return None
        found = _parsed(NOT_A_NUMBER.sub("None", value) if name in ("scores", "ranks") else value)
        if isinstance(found, (list, tuple)):
            return found
    elif name in TEXTS and BEGINS_AS_MESSAGES.match(value):
        found = _parsed(value)
        if are_messages(found):
            return found
        if found is not None or not BEGINS_AS_LIST.match(value):
            return None  # JSON that is itself the text
    else:
        return None
    raise RowError(
        f"{name} looks like a list written as text ({value.strip()[:24]!r}…), but is neither JSON nor a Python "
        "literal; save the rows as JSON lines, which keep lists"
    )


def are_messages(value: Any) -> bool:
    """Whether `value` is a message, or a list of nothing but messages."""
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)) or not items:
        return False
    return all(
        isinstance(m, Mapping) and (m.keys() >= {"role", "content"} or m.keys() >= {"from", "value"}) for m in items
    )


def _parsed(text: str) -> Any:
    if len(text) > LARGEST_TEXT:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a text is no concern of the user
            return None if _joins_strings(text) else ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return None


def _joins_strings(text: str) -> bool:
    """Whether two strings stand side by side, as arrays write their items; Python would read them as one."""
    kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(text.strip()).readline) if t.type != tokenize.NL]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in pairwise(kinds))
