"""Columns that belong together by their names: two answers, a better and a worse one, what a question gives to choose
from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

STEMS = ("response", "answer", "completion", "conversation", "output", "generation", "text", "assistant", "candidate")
# Endings of two answers, and those of a third.
SIDES = (
    ("_0", "_1", ("_2",)),
    ("_1", "_2", ("_0", "_3")),
    ("1", "2", ("0", "3")),
    ("0", "1", ("2",)),
    ("_a", "_b", ("_c",)),
    ("a", "b", ("c",)),
)
CHOICES = ("choices", "options", "endings", "answer_options", "mc1_targets")
LETTERED = [[f"{stem}{letter}" for letter in "abc"] for stem in ("", "option_", "choice_", "op")]  # choices, too
# What the better and the worse answer of a pair are called, alone or beside "response", "answer", …
BETTER_WORSE = (
    *(("chosen", "rejected"), ("accepted", "rejected"), ("preferred", "rejected"), ("preferred", "dispreferred")),
    *(("better", "worse"), ("good", "bad"), ("win", "lose"), ("winning", "losing"), ("winner", "loser")),
    *(("positive", "negative"), ("y_w", "y_l"), ("w", "l"), ("j", "k")),
)


def normal(column: str) -> str:
    """`"Chosen-Rating"` as `chosen_rating`."""
    return column if column.isidentifier() and column.islower() else re.sub(r"[-\s.]+", "_", column.strip().lower())


def two_answers(there: Sequence[str]) -> dict[str, str]:
    """The columns of two answers and of their scores, such as response_0 and response_1; empty if there are more."""
    known = {normal(column): column for column in there}
    for first, second, more in SIDES:
        for stem in STEMS:
            if {stem + first, stem + second} <= known.keys() and not any(stem + third in known for third in more):
                found = {"first": known[stem + first], "second": known[stem + second]}
                for score in ("score", "rating", "reward"):
                    if score + first in known and score + second in known:
                        return found | {"first_score": known[score + first], "second_score": known[score + second]}
                return found
    return {}


def pairs_of_names(kinds: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The columns of a better and a worse answer under other names, such as good_response and bad_response."""
    forms = ("{}", *(form for stem in STEMS for form in (f"{{}}_{stem}", f"{stem}_{{}}")))
    for words in BETTER_WORSE if "chosen" not in kinds else ():
        for better, worse in ([form.format(word) for word in words] for form in forms):
            # alone, "positive" is a text for an embedding, and a letter may be anything
            if {better, worse} <= kinds.keys() and better != "positive" and len(better) > 1:
                yield kinds[better], kinds[worse]


def choices_of(there: Iterable[str]) -> list[str]:
    """The columns of what a question gives to choose from: one list, or a column for each letter."""
    kinds = {normal(column): column for column in there}
    lettered = next(([kinds[name] for name in names] for names in LETTERED if {*names} <= kinds.keys()), [])
    return [kinds[name] for name in CHOICES if name in kinds] or lettered
