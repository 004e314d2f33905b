"""A column whose name alone does not tell what it is: what stands beside it, and its content, do."""

from __future__ import annotations

from typing import Any

import pytest

from data.example import Example, Remark, RowError
from data.meaning import pointers
from data.recognise import recognise

QA = {"prompt": "q", "response": "b"}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]
TWO = {"prompt": "q", "response_a": "b", "response_b": "c"}
GOOD, PAIR = ("b", None), ("b", "c")


def read(row: dict[str, Any]) -> tuple[list[tuple[str | None, str | None]], list[str]]:
    items = list(recognise([row], {}).adapt(row))
    examples = [(item.chosen, item.rejected) for item in items if isinstance(item, Example)]
    return examples, [item.text for item in items if isinstance(item, Remark)]


@pytest.mark.parametrize(
    "row",
    [
        {**QA, "good": "clear", "bad": "long"},
        {**QA, "j": "x", "k": "y"},
        {**QA, "w": "x", "l": "y"},
        {**QA, "positive": 0.2, "negative": 0.8},
        {**QA, "positive": "kind", "negative": "long"},
        {**QA, "a": 1, "b": 2, "c": 3},
        {**QA, "candidates": ["Paris", "Lyon"], "scores": [0.9, 0.1]},
        {"messages": TALK, "better": "m", "worse": "n"},
        {"messages": TALK, "winner": "m", "loser": "n"},
        {"messages": TALK, "good": "clear", "bad": "long"},
    ],
)
def test_notes_beside_an_answer_are_no_answers(row: dict[str, Any]) -> None:
    """A note called "bad" was learned as the worse answer, and other notes made files refused that were read before."""
    assert read(row)[0] == [GOOD]


@pytest.mark.parametrize(
    "judged", [{"winner": "a", "loser": "b"}, {"preferred": "a", "rejected": "b"}, {"winner": "b", "loser": "c"}]
)
def test_a_winner_and_a_loser_may_name_two_answers(judged: dict[str, str]) -> None:
    """The letters of the two answers were learned as if they were the answers."""
    assert read({**TWO, **judged})[0] == [PAIR]


def test_names_of_two_answers_are_not_learned_as_answers() -> None:
    with pytest.raises(RowError, match="no column known to say which is better"):
        read({**TWO, "better": "response_a", "worse": "response_b"})


def test_a_named_pair_comes_before_another_response() -> None:
    """The response was made a pair with the worse answer, which the better one belongs to."""
    examples, remarks = read({**QA, "response": "r", "better_response": "b", "worse_response": "c"})
    assert (examples, remarks) == ([PAIR], ["column 'response' is not used"])


def test_candidates_give_way_to_a_pair() -> None:
    row = {"prompt": "q", "chosen": "b", "rejected": "c", "candidates": [{"text": "x", "score": 1}]}
    assert read(row) == ([PAIR], ["column 'candidates' is not used"])


def test_contents_are_messages_only_where_they_hold_messages() -> None:
    """Documents beside a prompt were learned as turns of a conversation."""
    assert read({"prompt": "q", "contents": ["d", "e"]}) == ([(None, None)], ["column 'contents' is not used"])
    assert read({"text": "t", "contents": "d"})[1] == ["column 'contents' is not used"]
    assert read({"contents": [{"role": "user", "parts": [{"text": "q"}]}, TALK[1]]})[0] == [GOOD]


def test_plain_text_beside_an_input_text_stays_plain_text() -> None:
    row = {"text": "t", "input_text": "i"}
    assert [item.text for item in recognise([row], {}).adapt(row) if isinstance(item, Example)] == ["t"]


def test_a_score_outweighs_a_label_of_words() -> None:
    """A score beside "valid" was dropped without a word, and the worst answer learned like the best."""
    rows = [{**QA, "valid": True, "score": 2}, {**QA, "response": "c", "valid": True, "score": 1}]
    shape = recognise(rows, {})
    assert "score" in shape.says
    assert "label" not in shape.says
    assert [i.text for i in shape.adapt(rows[0]) if isinstance(i, Remark)] == ["column 'valid' is not used"]


def test_a_label_that_is_missing_is_called_by_its_column() -> None:
    rows = [{**QA, "passed": True}, {**QA, "passed": None}]
    with pytest.raises(RowError, match=r"^passed is empty"):
        list(recognise(rows, {}).adapt(rows[1]))


@pytest.mark.parametrize("value", [False, 3])
def test_a_count_of_rejections_is_no_worse_answer(value: Any) -> None:
    assert read({"prompt": "q", "rejected": value}) == ([(None, None)], ["column 'rejected' is not used"])


def test_a_class_and_the_order_of_rows_point_to_no_answer() -> None:
    answers = [["b", "c"], ["d", "e"]]
    assert pointers(answers, {"label": ["math", "chat"], "order": [0, 7]}) == []
    assert pointers(answers, {"label": [0, 1], "order": [[1, 0], [0, 1]]}) == ["label", "order"]
    assert pointers(answers, {"label": ["B", "A"], "best": ["the first"]}) == ["label", "best"]
    assert read({"prompt": "q", "answers": ["b", "c"], "label": "math"})[0] == [PAIR]


@pytest.mark.parametrize(
    "turns", [[["user", "q"], ["assistant", "b"]], [["human", "q"], ["ai", "b"]], ["User: q", "Assistant: b"]]
)
def test_turns_that_name_their_speaker(turns: Any) -> None:
    """The words "user" and "assistant" were read as what the user says, and the question learned as an answer."""
    row = {"messages": turns}
    (example,) = [item for item in recognise([row], {}).adapt(row) if isinstance(item, Example)]
    assert (example.prompt, example.chosen) == (({"role": "user", "content": "q"},), "b")


@pytest.mark.parametrize(
    "options",
    [{"enable_thinking": "False"}, {"chat_template_kwargs": "{'enable_thinking': False}"},
     {"chat_template_kwargs": '{"enable_thinking": false}'}],
)  # fmt: skip
def test_options_of_a_table_are_read(options: dict[str, str]) -> None:
    """The text "False" was given to the template, which takes it for true."""
    row = {**QA, **options}
    (example,) = [item for item in recognise([row], {}).adapt(row) if isinstance(item, Example)]
    assert example.prompt[0].get("options") == {"enable_thinking": False}


def test_a_judge_that_names_both_answers_says_a_tie() -> None:
    """Its last letter was read as the winner."""
    for row in (
        {**TWO, "winner": "Neither A nor B"},
        {"prompt": "q", "response_1": "b", "response_2": "c", "winner": "both a and b"},
    ):
        assert read(row)[0] == []
