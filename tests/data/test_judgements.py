"""Which of two answers a row prefers, and what is no judgement."""

from __future__ import annotations

from typing import Any

import pytest

from data.example import RowError
from data.judgements import is_tie, lean, number, score_of

AB, NUMBERS, BINARY = ("answer_a", "answer_b"), ("response_1", "response_2"), ("response_0", "response_1")


@pytest.mark.parametrize(
    ("winner", "sides", "expected"),
    [
        ("model_a", AB, 1),
        ("B", AB, -1),
        ("[[A]]", AB, 1),
        ("answer_b", AB, -1),
        ("C", AB, 0),
        (0, AB, 1),
        (1, AB, -1),
        ("tie (bothbad)", AB, 0),
        ("Tie", AB, 0),
        (1, NUMBERS, 1),
        (2.0, NUMBERS, -1),
        ("response_2", NUMBERS, -1),
        (0, BINARY, 1),
        (1, BINARY, -1),
        ("model_1", BINARY, -1),
        (None, AB, None),
        ("", AB, None),
        ("first", ("first", "other"), 1),
    ],
)
def test_a_winner_is_named_by_the_ending_of_its_column(
    winner: Any, sides: tuple[str, str], expected: int | None
) -> None:
    """1 is the first of response_1 and response_2, and the second of response_0 and response_1."""
    assert lean({"winner": winner}, sides) == expected


@pytest.mark.parametrize(
    ("winner", "sides"),
    [
        ("c", NUMBERS),
        (0, NUMBERS),
        (2, BINARY),
        ("gpt-4", AB),
        ("vicuna-7b", AB),
        ("vicuna-7b", NUMBERS),
        (["a"], AB),
        (3, AB),
    ],
)
def test_another_winner_is_an_error(winner: Any, sides: tuple[str, str]) -> None:
    with pytest.raises(RowError, match=f"neither {sides[0]} nor {sides[1]} nor a tie"):
        lean({"winner": winner}, sides)


def test_a_preference_is_below_zero_where_the_first_is_better() -> None:
    assert [lean({"preference": value}, AB) for value in (-2, "3", 0, None, "n/a")] == [2, -3, 0, None, None]
    assert lean({"first_score": 2, "second_score": "0.5"}, AB) == 1.5
    assert lean({"first_score": 2, "second_score": float("nan")}, AB) is None


def test_what_is_no_score() -> None:
    assert [score_of(value, "score") for value in (None, "", " N/A ", float("nan"), "nan", "-")] == [None] * 6
    assert [score_of(value, "score") for value in (0, "0", False, "-1.5", True)] == [0, 0, 0, -1.5, 1]
    with pytest.raises(RowError, match="score is 'good', not a number"):
        score_of("good", "score")
    with pytest.raises(RowError, match="score is a list, not a number"):
        number([1], "score")
    assert [is_tie(value) for value in ("tie", "both_bad", "Equal", 0, None, "unchanged")] == [True] * 3 + [False] * 3
