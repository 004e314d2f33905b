"""Judgements of answers: scores, ranks, a winner, a preference for one of two; and the pairs that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, takewhile
from typing import Any

from data.example import Example, RowError, kind_of
from rlhf.template import Message

# Fields of an answer that is a mapping.
TEXT_FIELDS = ("answer", "response", "completion", "text", "output", "generation", "content")
SCORE_FIELDS = ("score", "overall_score", "pm_score", "rating", "reward", "fine-grained_score", "helpfulness")
RANK_FIELDS = ("rank", "ranking")
UNRATED = ("", "n/a", "na", "none", "null", "nan", "-")
TIES = ("tie", "both", "bothbad", "bothgood", "equal", "same", "draw", "neither", "nopreference")  # without blanks
SAYS_A_TIE = re.compile(r"\W*(neither|both)\b", re.IGNORECASE)  # "neither A nor B"
COMPARED = re.compile(r"(a|b|1|2)(=|>{1,3}|<{1,3})(a|b|1|2)")  # "A>B", as judges are asked to write
NUMBERED = {"a": 0, "b": 1, "first": 0, "second": 1, "left": 0, "right": 1}  # whatever the answers' columns are called


def number(value: Any, name: str) -> float:
    """A number that may be written as text, as in CSV; an empty value is 0."""
    if value is None or value == "":
        return 0.0
    try:
        return float(value)
    except (TypeError, ValueError):
        shown = kind_of(value) if isinstance(value, (list, dict)) else repr(value)[:40]
        raise RowError(f"{name} is {shown}, not a number") from None


def as_number(value: Any) -> float | None:
    """A number, also as text; None for all else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found


def score_of(value: Any, name: str) -> float | None:
    """A score or a rank; None where there is none, which tables write as null, NaN or "N/A"."""
    if value is None or (isinstance(value, str) and value.strip().lower() in UNRATED):
        return None
    score = number(value, name)
    return None if math.isnan(score) else score


def ranked_pairs(prompt: tuple[Message, ...], texts: Sequence[str], scores: Sequence[float]) -> Iterator[Example]:
    """Every pair of answers with different scores; only the best answers are demonstrations."""
    as_many(texts, scores)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    for better, worse in combinations(order, 2):
        if scores[better] > scores[worse]:
            best = scores[better] == scores[order[0]]
            yield Example(prompt, texts[better], texts[worse], demonstrates=best)


def as_many(answers: Sequence[Any], values: Sequence[Any]) -> None:
    if len(answers) != len(values):
        raise RowError(f"there are {len(answers)} answers but {len(values)} scores or ranks")


def lean(row: Mapping[str, Any], sides: tuple[str, str]) -> float | None:
    """Which of two answers a row prefers: above 0 the first, below 0 the second, 0 none of them; None where it does not
    say. `sides` are the columns of the answers; a winner names the ending of one, or one of the row's two `models`."""
    if "winner" in row:
        models = [name for name in row.get("models", ()) if isinstance(name, str)]
        if len({*models}) == 2 and row["winner"] in models:
            return 1.0 if models[0] == row["winner"] else -1.0
        return _winner(row["winner"], sides)
    if "preference" in row:
        value = score_of(row["preference"], "preference")
        return None if value is None else -value
    first, second = (score_of(row.get(f"{side}_score"), f"{side}_score") for side in ("first", "second"))
    return None if first is None or second is None else first - second


def _winner(value: Any, sides: tuple[str, str]) -> float | None:
    """`"model_a"` of conversation_a and conversation_b, 0 of response_0 and response_1, "tie"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).lower().strip("[](). ")
    if value is None or text in UNRATED:
        return None
    if is_tie(text):
        return 0.0
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False)))
    endings = [side[shared:].lower() for side in sides]
    if endings == ["a", "b"] and text == "c":  # what judges are asked to write for a tie
        return 0.0
    if (found := COMPARED.fullmatch(text.replace(" ", ""))) and found[1] != found[3]:
        better = found[1] if found[2].startswith(">") else found[3]
        return 0.0 if found[2] == "=" else 1.0 if better in "a1" else -1.0
    matches = [
        text in (ending, side.lower()) or _ends_with(text, ending) for ending, side in zip(endings, sides, strict=True)
    ]
    if not any(matches):
        place = NUMBERED.get(re.split(r"[^a-z0-9]+", text)[-1])
        digits = () if any(ending.isdigit() for ending in endings) else ("0", "1")
        matches = [place == side or (text in digits and text == str(side)) for side in (0, 1)]
    if matches.count(True) != 1:
        shown = kind_of(value) if isinstance(value, (list, dict)) else repr(value)[:40]
        raise RowError(f"winner is {shown}, neither {sides[0]} nor {sides[1]} nor a tie")
    return 1.0 if matches[0] else -1.0


def is_tie(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    text = re.sub(r"[\s_]+", "", value.lower())
    return text in TIES or text.startswith("tie(") or SAYS_A_TIE.match(value) is not None


def _ends_with(text: str, ending: str) -> bool:
    return text.endswith(ending) and not text[: -len(ending)][-1:].isalnum() if ending else False
