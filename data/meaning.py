"""What the columns beside it, and its content, say of a column whose name alone does not tell what it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.judgements import as_number
from data.sides import normal
from data.written import BEGINS_AS_MESSAGES

# Columns that point to one of several answers.
POINTERS = {
    *("best", "best_index", "chosen_index", "correct_index", "answer_index", "answer_idx", "correct_answer", "order"),
    *("label", "winner", "choice", "preferred", "chosen"),
}
# Labels that a score or a rank outweighs.
WORDY_LABELS = (
    *("good", "accepted", "approved", "liked", "passed", "thumbs_up", "safe", "valid", "is_valid"),
    *("verdict", "outcome", "judgement", "judgment"),
)


def are_answers(
    pair: tuple[str, str], names: Mapping[str, str], content: Mapping[str, list[Any]], sides: Sequence[str]
) -> bool:
    """Whether the columns of a pair such as better and worse hold answers. They may name one of two other answers
    (`sides`), and beside another answer a bare word such as "good" says something of it."""
    values = [value for column in pair for value in content[column]]
    if not all(isinstance(value, (str, list, tuple, Mapping)) for value in values):
        return False
    if sides:
        both = [value for column in sides for value in content[column]]
        return all(value in both for value in values)
    others = {n: content[c] for c, n in names.items() if c not in pair and content[c]}
    answered = {"chosen", "output", "answers"} & others.keys() or not all(map(asks, others.get("messages", ())))
    return not answered or "_" in normal(pair[0])


def beside_others(kinds: Mapping[str, str], named: set[str], content: Mapping[str, list[Any]]) -> set[str]:
    """Columns whose names mean something else beside the others, `named` being the names of these."""
    contents = content[kinds["contents"]] if "contents" in kinds else []
    answered = {"chosen", "output"} & named
    talk = all(map(is_talk, contents)) and all(isinstance(item, Mapping) for item in items(contents))
    found = {
        "contents": not talk,  # a document
        "candidates": bool(answered),
        "input_text": "text" in kinds and not answered,
        **dict.fromkeys(WORDY_LABELS, bool({"score", "rank"} & named)),
    }
    return {kinds[kind] for kind, other in found.items() if other and kind in kinds}


def pointers(answers: Sequence[Any], content: Mapping[str, list[Any]]) -> list[str]:
    """The columns that point to one of several answers; a label may be a class, an order that of the rows."""
    most = max((len(value) for value in answers if isinstance(value, (list, tuple))), default=0)

    def points(value: Any) -> bool:
        number = as_number(value)
        return isinstance(value, (list, tuple)) or (
            0 <= number <= most if number is not None else isinstance(value, str) and len(value) == 1
        )

    return [
        column
        for column, values in content.items()
        if (kind := normal(column)) in POINTERS
        and (kind not in ("label", "order") or all(points(v) for v in values if isinstance(v, (str, int, float, list))))
    ]


def asks(value: Any) -> bool:
    """Whether a value is a conversation that ends with a question."""
    last = value[-1] if isinstance(value, (list, tuple)) and value else None
    return isinstance(last, Mapping) and last.get("role", last.get("from")) in ("user", "human")


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"role", "from"} & value.keys())


def items(values: Iterable[Any]) -> list[Any]:
    return [item for value in values if isinstance(value, (list, tuple)) for item in value]


def is_talk(value: Any) -> bool:
    return isinstance(value, (list, tuple, Mapping)) or (
        isinstance(value, str) and BEGINS_AS_MESSAGES.match(value) is not None
    )
