"""Columns that belong together by their names."""

from __future__ import annotations

import pytest

from data.sides import choices_of, normal, pairs_of_names, two_answers


def pairs(*columns: str) -> list[tuple[str, str]]:
    return list(pairs_of_names({normal(column): column for column in columns}))


def test_names_are_compared_without_case_and_hyphens() -> None:
    assert normal("Chosen-Avg.Rating ") == "chosen_avg_rating"


@pytest.mark.parametrize(
    ("better", "worse"),
    [("better", "worse"), ("Good_Response", "bad_response"), ("accepted", "rejected"), ("response_j", "response_k"),
     ("answer_preferred", "answer_dispreferred"), ("y_w", "y_l"), ("text_chosen", "text_rejected")],
)  # fmt: skip
def test_a_better_and_a_worse_answer_are_known_by_their_names(better: str, worse: str) -> None:
    """Such pairs were read as prompts alone, their answers not read."""
    assert pairs("prompt", better, worse, "id") == [(better, worse)]
    assert pairs("prompt", better) == pairs("prompt", worse) == []
    assert pairs("prompt", better, worse, "chosen") == []


def test_choices_are_one_column_or_one_for_each_letter() -> None:
    assert choices_of(["question", "Options"]) == ["Options"]
    assert choices_of(["question", "A", "B", "C", "D"]) == ["A", "B", "C"]
    assert choices_of(["question", "option_a", "option_b", "option_c"]) == ["option_a", "option_b", "option_c"]
    assert choices_of(["question", "answer", "a", "b"]) == []


def test_two_answers_and_no_third() -> None:
    assert two_answers(["candidate_0", "candidate_1", "choice"]) == {"first": "candidate_0", "second": "candidate_1"}
    assert two_answers(["response_1", "x", "Response_2"]) == {"first": "response_1", "second": "Response_2"}
    scored = ["answer_0", "answer_1", "score_0", "score_1"]
    assert list(two_answers(scored).values()) == scored
    assert two_answers(["response_0", "response_1", "response_2"]) == {}
    assert two_answers(["response_1", "answer_2"]) == {}
