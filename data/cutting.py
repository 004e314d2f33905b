"""Where texts and responses are cut: at the edge of a character as people see it, never inside one.

A token may be a part of a character, and a character may be several code points: a letter with its accent, an emoji of
a family. `regex` knows the edges (Unicode's extended grapheme clusters).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:
    from rlhf.template import Template

_HALF = "\ufffd"  # what a decoder writes for bytes that are not a whole character


def edges(text: str) -> Sequence[int]:
    """The places in `text` where a character begins, and its end."""
    if text.isascii():
        return range(len(text) + 1)
    return [*(match.start() for match in regex.finditer(r"\X", text)), len(text)]


def without_tokens(tokenizer: Any, text: str, tokens: int, *, keep_end: bool) -> str:
    """`text` without at least `tokens` of its tokens, at its beginning (`keep_end`) or at its end; it is shorter, and
    may be empty. Where not even one character is left, a code point of it may be."""
    for places in (edges(text), range(len(text) + 1)):
        place = _between_tokens(tokenizer, text, tokens, keep_end=keep_end) if tokenizer.is_fast else None
        if place is None:
            found = _counted(tokenizer, text, tokens, places, keep_end=keep_end)
        elif keep_end:
            found = text[places[bisect_left(places, place)] :]
        else:
            found = text[: places[bisect_right(places, place) - 1]]
        if found:
            return found
    return ""


def _between_tokens(tokenizer: Any, text: str, tokens: int, *, keep_end: bool) -> int | None:
    """The place in `text` before or behind `tokens` tokens; None if it is inside of a code point, or if the tokenizer
    does not tell: some give one span to all tokens of what they do not know."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if tokens >= len(spans):
        return len(text) if keep_end else 0
    at = tokens if keep_end else len(spans) - tokens
    (_, end), (begin, _) = spans[at - 1], spans[at]
    place = begin if keep_end else end
    return place if end <= begin and 0 < place < len(text) else None


def _counted(tokenizer: Any, text: str, tokens: int, places: Sequence[int], *, keep_end: bool) -> str:
    """The longest rest of `text` that is cut at one of `places` and has `tokens` tokens less."""

    def rest(removed: int) -> str:
        return text[places[removed] :] if keep_end else text[: places[-1 - removed]]

    def count(part: str) -> int:
        return len(tokenizer(part, add_special_tokens=False)["input_ids"])

    most = count(text) - tokens
    removed = bisect_left(range(1, len(places)), True, key=lambda i: count(rest(i)) <= most) + 1
    return rest(removed) if removed < len(places) else ""


def whole_characters(template: Template, response_ids: Sequence[int], most: int) -> int:
    """How many of the first `most` ids of a response to keep, so that their text ends with a whole character (if not
    even one fits, with a whole code point)."""
    whole = template.text(response_ids)
    places, longest = set(edges(whole)), 0
    for count in range(most, 0, -1):
        ids = list(response_ids[:count])
        part = template.text(ids)
        if not whole.startswith(part):
            continue
        if part.endswith(_HALF) and template.response_ids(part, end=False) != ids:
            continue  # the text itself has this character, and these ids are a part of it
        longest = longest or count
        if part and len(part) in places:
            return count
    return longest
