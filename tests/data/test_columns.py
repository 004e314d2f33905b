"""What a column is called among ours: by its name, and by its content where the name does not tell."""

from __future__ import annotations

from typing import Any

import pytest

from data.columns import names_of
from data.forms import TARGETS


def found(*rows: dict[str, Any], **columns: str) -> dict[str, str]:
    names = names_of(rows, columns, TARGETS)
    return names.among(list(dict.fromkeys(column for row in rows for column in row)))


def test_names_are_compared_without_case_and_hyphens() -> None:
    assert found({"Prompt": "q", "RESPONSE": "a"}) == {"prompt": "Prompt", "chosen": "RESPONSE"}
    assert found({"Prompt": "q", "prompt": "p"})["prompt"] == "prompt"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"context": [{"role": "user", "content": "q"}]}, {"prompt": "context"}),
        ({"context": "[{'role': 'user', 'content': 'q'}]"}, {"prompt": "context"}),
        ({"context": "A text.", "question": "q"}, {"prompt": "question", "input": "context"}),
        ({"input": "q", "output": "a"}, {"prompt": "input", "chosen": "output"}),
        ({"instruction": "q", "input": "x", "output": "a"}, {"instruction": "instruction", "input": "input",
        "output": "output"}),
        ({"question": "q", "answer": "7"}, {"prompt": "question"}),
        ({"question": "q", "answer": "7 figs.\n#### 7"}, {"prompt": "question", "chosen": "answer"}),
        ({"question": "q", "answer": "7", "rejected": "8"}, {"prompt": "question", "rejected": "rejected",
        "chosen": "answer"}),
        ({"question": "q", "solution": "one two three four five six", "response": "r"}, {"prompt": "question",
        "chosen": "response"}),
        ({"query": "q", "responses": ["a"]}, {"prompt": "query"}),
        ({"query": "q", "responses": ["a"], "rating": [1]}, {"prompt": "query", "answers": "responses",
        "scores": "rating"}),
        ({"query": "q", "responses": [{"rank": 1}]}, {"prompt": "query", "answers": "responses"}),
        ({"query": "q", "response": "a", "is_correct": False}, {"prompt": "query", "chosen": "response",
        "label": "is_correct"}),
        ({"query": "q", "response": "a", "correct": "Paris"}, {"prompt": "query", "chosen": "response"}),
    ],
)  # fmt: skip
def test_content_decides_where_a_name_does_not(row: dict[str, Any], expected: dict[str, str]) -> None:
    assert found(row) == expected


def test_a_name_may_be_taken_from_all_columns() -> None:
    assert found({"prompt": "q", "response": "a", "score": 1}, score="") == {"prompt": "prompt", "chosen": "response"}
    assert found({"prompt": "q", "answer": "7"}, chosen="answer") == {"chosen": "answer", "prompt": "prompt"}


def test_a_column_that_only_later_rows_have_counts_by_its_name() -> None:
    names = names_of([{"prompt": "q"}], {}, TARGETS)
    assert names.among(["prompt", "system", "completion", "answer"]) == {
        "prompt": "prompt", "system": "system", "chosen": "completion",
    }  # fmt: skip
