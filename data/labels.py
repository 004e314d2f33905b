"""Answers that are judged alone. A label says whether an answer is good; a score is worth something beside another one
to the same prompt. An answer that is bad, or not known to be better than another, is never learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from data.example import Example, Remark, RowError, kind_of
from data.judgements import score_of

Where = TypeVar("Where", bound=str)  # the place of a row

WORDS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "chosen", "desirable", "correct", "pass"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "rejected", "undesirable", "incorrect", "fail"), False),
}
BAD_ALONE = (
    "answer labelled false without a good answer beside it is not learned; its prompt is kept "
    "(--columns label= learns all answers, where the label is not about them)"
)
SCORED_ALONE = (
    "answer with a score, or without one, that no answer to the same prompt beside it is compared with is not learned; "
    "its prompt is kept (--columns score= learns all answers)"
)


@dataclass(frozen=True)
class Scored(Example):
    """A demonstration with a score, until the rows of its prompt are together (`paired`)."""

    score: float | None = None

    def plain(self, **values: Any) -> Example:
        return Example(**{f.name: getattr(self, f.name) for f in fields(Example)} | values)


def is_good(label: Any, column: str = "label") -> bool:
    """A label as true or false; as a number or text it is 1 or 0, "true" or "false"."""
    found = WORDS.get(str(label).strip().lower())
    if found is None:
        shown = kind_of(label) if label is None or isinstance(label, (list, dict)) else repr(label)[:40]
        way = f"--columns score={column} takes numbers as scores, " if isinstance(label, (int, float)) else ""
        raise RowError(
            f"{column} is {shown}, neither true nor false; {way}--columns label= leaves the column "
            "out, so that all answers are learned"
        )
    return found


def judged(found: Iterable[Example | Remark], label: Any, column: str = "label") -> Iterator[Example | Remark]:
    """Demonstrations, as bad responses if `label` is false."""
    good = is_good(label, column)
    for item in found:
        if isinstance(item, Example) and item.chosen is not None and not good:
            item = replace(item, chosen=None, rejected=item.chosen)
        yield item


def scored(found: Iterable[Example | Remark], score: Any, rank: Any = None) -> Iterator[Example | Remark]:
    """Demonstrations with their score, or with their rank, of which the lowest is best."""
    value, place = score_of(score, "score"), score_of(rank, "rank")
    if value is None and place is not None:
        value = -place
    for item in found:
        if isinstance(item, Example) and item.chosen is not None:
            yield Scored(**{f.name: getattr(item, f.name) for f in fields(Example)}, score=value)
        else:
            yield item


def paired(placed: Iterable[tuple[Where, Example]]) -> Iterator[tuple[Where, Example]]:
    """Rows of one prompt that stand together: its good and its bad responses become pairs, and so do responses with
    different scores. All else stays as it is."""
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
    if any(isinstance(example, Scored) for _, example in group):
        yield from _by_score(group)
        return
    bad = [example.rejected for _, example in group if example.chosen is None]
    if not bad or len(bad) == len(group):
        yield from group
        return
    for where, example in group:
        if example.chosen is not None:
            yield from ((where, replace(example, rejected=text)) for text in bad)


def _by_score(group: list[tuple[Where, Example]]) -> Iterator[tuple[Where, Example]]:
    """Each response with all that have a lower score; only those with the highest are demonstrations. Responses
    without a score stay as they are."""
    rows = [(where, e, e.score) for where, e in group if isinstance(e, Scored) and e.score is not None]
    unrated = [(where, e) for where, e in group if not isinstance(e, Scored) or e.score is None]
    best = max((score for *_, score in rows), default=0.0)
    used: set[int] = set()
    for i, (where, example, score) in enumerate(rows):
        for j, (_, other, lower) in enumerate(rows):
            if lower < score:
                used |= {i, j}
                yield where, example.plain(rejected=other.chosen, demonstrates=score == best)
    yield from unrated if used else group
