"""Rows whose columns differ: which shape a source has, how each row is read, and what is said of unused columns."""

from __future__ import annotations

from typing import Any

import pytest

from data.example import Example, Remark, RowError
from data.recognise import parse_columns, recognise

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
WORSE = {"role": "assistant", "content": "b"}
Texts = tuple[list[str], str | None, str | None]


def read(rows: list[dict[str, Any]], columns: str = "") -> list[Texts]:
    """Of each Example its prompt's texts, chosen and rejected."""
    shape = recognise(rows, parse_columns(columns))
    found = [item for row in rows for item in shape.adapt(row) if isinstance(item, Example)]
    return [([m["content"] for m in e.prompt], e.chosen, e.rejected) for e in found]


def remarks(*rows: dict[str, Any], columns: str = "") -> list[str]:
    shape = recognise(rows, parse_columns(columns))
    return [item.text for row in rows for item in shape.adapt(row) if isinstance(item, Remark)]


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        (
            {"instruction": "Hi.", "output": "a"},
            {"instruction": "Translate.", "input": "bonjour", "output": "hello"},
            (["Translate.\n\nbonjour"], "hello", None),
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR | {"system": "S"}, (["S", "q"], "a", "b")),
        ({"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER], "system": "S"}, (["S", "q"], "a", None)),
        ({"prompt": "q", "completion": "a"}, {"prompt": "r", "response": "c"}, (["r"], "c", None)),
        ({"query": "q", "response": "a"}, {"query": "r", "response": "c", "history": [["e", "f"]]},
         (["e", "f", "r"], "c", None)),
    ],
)  # fmt: skip
def test_a_column_counts_wherever_it_occurs(first: dict[str, Any], later: dict[str, Any], expected: Texts) -> None:
    """The first row used to decide which columns are read, so the input, the system text and the margin of later rows
    vanished without a word."""
    assert read([first, later])[1] == expected
    assert read([later, first])[0] == expected
    nulls = dict.fromkeys(later) | first  # as tables write rows that lack a column
    assert read([nulls, later])[1] == expected


def test_a_late_margin_counts() -> None:
    rows = [PAIR, PAIR | {"margin": 2.0}]
    shape = recognise(rows, {})
    assert [e.margin for row in rows for e in shape.adapt(row) if isinstance(e, Example)] == [0.0, 2.0]
    assert shape.says == "preference pairs: prompt, chosen, rejected, margin"


def test_a_column_counts_that_no_row_before_had() -> None:
    """Beyond the rows by which a source is recognised, too."""
    shape = recognise([{"prompt": "q", "completion": "a"}], {})
    (late,) = [e for e in shape.adapt(PAIR | {"system": "S"}) if isinstance(e, Example)]
    assert (late.prompt[0]["content"], late.rejected) == ("S", "b")


def test_rows_of_two_shapes_are_read_by_their_own() -> None:
    rows = [PAIR, {"messages": [USER, ANSWER]}, PAIR]
    assert read(rows) == [(["q"], "a", "b"), (["q"], "a", None), (["q"], "a", "b")]
    assert "others are conversations" in recognise(rows, {}).says
    table = [dict.fromkeys(["prompt", "chosen", "rejected", "messages"]) | row for row in rows]
    assert read(table) == read(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, "has no column 'rejected'"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, r"rejected is empty \(null\), not text"),
        ({"prompt": "q"}, "has no column 'chosen'"),
        ({"text": "t"}, "has no column 'chosen'"),
    ],
)
def test_half_of_a_pair_is_refused(row: dict[str, Any], message: str) -> None:
    for rows in ([PAIR, row], [row, PAIR]):
        with pytest.raises(RowError, match=message):
            list(recognise(rows, {}).adapt(row))


def test_columns_that_are_named_leave_the_others_where_they_are() -> None:
    """--columns used to drop `system` without a word, and to announce `input` only to drop it."""
    row = {"question": "q", "best": "a", "worst": "b", "system": "S", "margin": 1}
    assert read([row], "prompt=question,chosen=best,rejected=worst") == [(["S", "q"], "a", "b")]
    row = {"instruction": "i", "input": "x", "output": "o"}
    assert read([row], "prompt=instruction,chosen=output") == [(["i\n\nx"], "o", None)]
    assert read([{"q": "i", "ctx": "x", "a": "o"}], "prompt=q,input=ctx,chosen=a") == [(["i\n\nx"], "o", None)]
    with pytest.raises(RowError, match="preference pairs, which do not use --columns scores=quality; leave it out"):
        recognise([PAIR | {"quality": 1}], parse_columns("prompt=prompt,scores=quality"))


def test_what_has_a_meaning_and_is_not_used_is_said() -> None:
    assert remarks(PAIR | {"id": 7, "tools": [], "images": None}) == []
    assert remarks(PAIR | {"tools": [{"name": "f"}]}) == []
    assert remarks(PAIR | {"tools": ["f"]}) == ["column 'tools' is not used: it is not a list of functions"]
    assert remarks(PAIR | {"input": "x"}) == ["column 'input' is not used"]
    short = "it holds results to compare with; --columns chosen=answer learns them as answers"
    assert remarks({"prompt": "q", "answer": "4"}) == [f"column 'answer' is not used: {short}"]
    # what only repeats a column that is used has nothing more to say
    assert remarks(PAIR | {"response": "a", "messages": "a"}) == []
    assert remarks({"prompt": "q", "messages": [USER, ANSWER]}) == []
    assert remarks(PAIR | {"response": "other"}) == ["column 'response' is not used"]
    own = {"messages": [{"role": "system", "content": "mine"}, USER, ANSWER], "system": "S"}
    assert remarks(own) == ["column 'system' is not used: the messages have a system turn of their own"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("reasoning_content", ["hm"]), ("thinking", {"a": "hm"}), ("tool_call_id", "1"), ("name", "Ann")],
)
def test_fields_of_messages_are_used_or_said(field: str, value: Any) -> None:
    """Fields beside role and content used to vanish."""
    why = "" if isinstance(value, str) else ": it is not text"
    assert remarks({"messages": [USER, ANSWER | {field: value}]}) == [f"field '{field}' of messages is not used{why}"]
    assert remarks({"messages": [USER, ANSWER | {field: None}]}) == []


def test_a_weight_that_is_a_fraction_is_said() -> None:
    row = {"messages": [USER, ANSWER | {"weight": 0.5}]}
    assert remarks(row) == ["weight of a turn other than 0 and 1 counts as 1"]


# Files of other tools for preferences: rows → prompt, chosen, rejected
OTHERS: dict[str, tuple[dict[str, Any], Texts]] = {
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}, "system": "S"},
        (["S", "q"], "a", "b"),
    ),
    "openai": ({"messages": [USER], "chosen": ANSWER, "rejected": WORSE}, (["q"], "a", "b")),
    "alpaca": (
        {"instruction": "i", "input": "x", "chosen": "a", "rejected": "b", "history": [["q", "r"]]},
        (["q", "r", "i\n\nx"], "a", "b"),
    ),
    "alpaca with output": (
        {"instruction": "i", "input": "x", "output": "a", "rejected_response": "b"}, (["i\n\nx"], "a", "b")
    ),
    "rejected_response": ({"messages": [USER, ANSWER], "rejected_response": "b"}, (["q"], "a", "b")),
    "rejected_messages": (
        {"messages": [USER, ANSWER], "rejected_messages": [USER, WORSE], "system": "S"}, (["S", "q"], "a", "b")
    ),
    "query": (
        {"query": "q", "response": "a", "rejected_response": "b", "history": [["e", "f"]], "system": "S"},
        (["S", "e", "f", "q"], "a", "b"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_preferences_of_other_tools(name: str) -> None:
    """Some of these were refused; of others the rejected response was dropped."""
    row, expected = OTHERS[name]
    assert read([row]) == [expected]
    assert remarks(row) == []


def test_steps_of_one_answer_are_refused_by_name() -> None:
    """They were read as ranked answers, the first step as the best."""
    row = {"prompt": "q", "completions": ["First.", "Then."], "labels": [True, False]}
    with pytest.raises(
        RowError, match=r"stepwise supervision.*--columns prompt=prompt,answers=completions,scores=labels"
    ):
        recognise([{"prompt": "q", "completions": ["a", "b"]}, row], {})
    late = {"prompt": "q", "answers": ["First.", "Then."], "labels": [True, False]}
    with pytest.raises(RowError, match="stepwise supervision"):
        list(recognise([{"prompt": "q", "answers": ["a", "b"]}], {}).adapt(late))
    assert read([row], "prompt=prompt,answers=completions,scores=labels") == [(["q"], "First.", "Then.")]
