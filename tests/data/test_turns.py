from __future__ import annotations

from typing import Any

import pytest

from data.example import RowError
from data.turns import as_prompt, as_response, earlier_turns
from rlhf.template import Message

USER, ANSWER = Message(role="user", content="q"), Message(role="assistant", content="a")


def test_history_comes_between_the_system_turn_and_the_question() -> None:
    prompt = as_prompt("r", system="S", history=[["q", "a"]], extra="x")
    assert [m["content"] for m in prompt] == ["S", "q", "a", "r\n\nx"]
    assert as_prompt([{"role": "system", "content": "own"}, USER], history=[["e", "f"]], system="S")[:2] == (
        {"role": "system", "content": "own"},
        {"role": "user", "content": "e"},
    )
    assert earlier_turns([USER, ANSWER]) == [USER, ANSWER]
    assert earlier_turns(None) == earlier_turns([]) == earlier_turns("") == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"history": "q"}, "history is not a list of"),
        ({"history": [["q"]]}, r"history \(1\) is not \[question, answer\]"),
        ({"history": [["q", None]]}, r"history \(1\) is empty \(null\), not text"),
        ({"system": ["S"]}, "system is a list, not text"),
        ({"extra": 3}, "input is a number, not text"),
    ],
)
def test_columns_beside_the_prompt_that_are_not_text_are_errors(values: dict[str, Any], message: str) -> None:
    """An input or a system column that was a number or a list vanished."""
    with pytest.raises(RowError, match=message):
        as_prompt("q", **values)


def test_one_message_is_a_response() -> None:
    assert as_response(ANSWER, [USER], "chosen") == "a"
    assert as_response({"from": "gpt", "value": "b"}, [USER], "chosen") == "b"
    with pytest.raises(RowError, match="chosen does not end with an assistant turn"):
        as_response(USER, [USER], "chosen")
