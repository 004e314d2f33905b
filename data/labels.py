"""Answers that are judged alone: a label says whether an answer is good; a bad one is never learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from data.example import Example, Remark, RowError, kind_of

Where = TypeVar("Where", bound=str)  # the place of a row

WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def is_good(label: Any) -> bool:
    """A label as true or false; as a number or text it is 1 or 0, "true" or "false"."""
    found = WORDS.get(str(label).strip().lower())
    if found is None:
        shown = kind_of(label) if label is None or isinstance(label, (list, dict)) else repr(label)[:40]
        raise RowError(f"label is {shown}, neither true nor false")
    return found


def judged(found: Iterable[Example | Remark], label: Any) -> Iterator[Example | Remark]:
    """Demonstrations, as bad responses if `label` is false."""
    good = is_good(label)
    for item in found:
        if isinstance(item, Example) and item.chosen is not None and not good:
            item = replace(item, chosen=None, rejected=item.chosen)
        yield item


def paired(placed: Iterable[tuple[Where, Example]]) -> Iterator[tuple[Where, Example]]:
    """Rows of one prompt that stand together: its good and its bad responses become pairs. All else stays as it is."""
    group: list[tuple[Where, Example]] = []
    for where, example in placed:
        if group and example.prompt != group[0][1].prompt:
            yield from _pairs_of(group)
            group = []
        if (example.chosen is None) == (example.rejected is None):  # a pair, a prompt alone, or plain text
            yield from _pairs_of(group)
            group = []
            yield where, example
        else:
            group.append((where, example))
    yield from _pairs_of(group)


def _pairs_of(group: list[tuple[Where, Example]]) -> Iterator[tuple[Where, Example]]:
    bad = [example.rejected for _, example in group if example.chosen is None]
    if not bad or len(bad) == len(group):
        yield from group
        return
    for where, example in group:
        if example.chosen is not None:
            yield from ((where, replace(example, rejected=text)) for text in bad)
