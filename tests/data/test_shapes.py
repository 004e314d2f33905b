"""Every shape: how it is recognised, what is said of it, and which decoded tokens count."""

from __future__ import annotations

from typing import Any

import pytest

from data.example import Example, RowError, ask
from data.recognise import parse_columns, recognise
from data.turns import transcript
from rlhf.errors import DataError

USER, ANSWER = {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Fig"}
SYSTEM, WORSE = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Stone"}
MORE = [USER, ANSWER, {"role": "user", "content": "Another?"}]
ASKED = "Human: Name a fruit.\n\nAssistant:"
ASKED_AGAIN = f"{ASKED} Fig</s>\n\nHuman: Another?\n\nAssistant:"
HUMAN = "\n\nHuman: Name a fruit.\n\nAssistant: Fig\n\nHuman: Another?\n\nAssistant:"

CASES: list[tuple[str, dict[str, Any], str, list[tuple[str, ...]]]] = [
    (
        "preference pairs: prompt, chosen, rejected",
        {"prompt": "Name a fruit.", "chosen": "Fig", "rejected": "Stone"},
        "",
        [(ASKED, " Fig</s>", " Stone</s>")],
    ),
    (
        "preference pairs: prompt, system, chosen, rejected",
        {"system": "Be brief.", "prompt": "Name a fruit.", "chosen": "Fig", "rejected": "Stone"},
        "",
        [(f"Be brief.\n\n{ASKED}", " Fig</s>", " Stone</s>")],
    ),
    (
        "preference pairs: prompt, chosen, rejected",
        {"prompt": HUMAN, "chosen": " Pear", "rejected": " Stone"},
        "",
        [(ASKED_AGAIN, " Pear</s>", " Stone</s>")],
    ),
    (
        "preference pairs: chosen, rejected",
        {"chosen": f"{HUMAN} Pear", "rejected": f"{HUMAN} Stone"},
        "",
        [(ASKED_AGAIN, " Pear</s>", " Stone</s>")],
    ),
    (
        "conversational preference pairs: prompt, chosen, rejected",
        {"prompt": [SYSTEM, USER], "chosen": [ANSWER], "rejected": [WORSE]},
        "",
        [(f"Be brief.\n\n{ASKED}", " Fig</s>", " Stone</s>")],
    ),
    (
        "conversational preference pairs: chosen, rejected",
        {"chosen": [*MORE, {"role": "assistant", "content": "Pear"}], "rejected": [*MORE, WORSE]},
        "",
        [(ASKED_AGAIN, " Pear</s>", " Stone</s>")],
    ),
    (
        "conversational preference pairs: prompt, chosen, rejected",
        {"prompt": "Name a fruit.", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        "",
        [(ASKED, " Fig</s>", " Stone</s>")],
    ),
    (
        "prompts with a response: prompt, chosen from completion",
        {"prompt": "Name a fruit.", "completion": "Fig"},
        "",
        [(ASKED, " Fig</s>")],
    ),
    (
        "conversational prompts with a response: prompt, chosen from completion",
        {"prompt": MORE, "completion": [{"role": "assistant", "content": "Pear"}]},
        "",
        [(ASKED_AGAIN, " Pear</s>")],
    ),
    (
        "conversations: messages",
        {"messages": [SYSTEM, *MORE, {"role": "assistant", "content": "Pear"}, USER]},
        "",
        [
            (f"Be brief.\n\n{ASKED_AGAIN} Pear</s>\n\n{ASKED}",),
            (f"Be brief.\n\n{ASKED_AGAIN}", " Pear</s>"),
        ],
    ),
    (
        "conversations: messages from conversations",
        {"conversations": [{"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "Fig"}]},
        "",
        [(ASKED, " Fig</s>")],
    ),
    (
        "instructions with an output: instruction, output, input",
        {"instruction": "Name it.", "input": "red, round", "output": "Apple", "text": "…"},
        "",
        [("Human: Name it.\n\nred, round\n\nAssistant:", " Apple</s>")],
    ),
    (
        "instructions with an output: instruction, output, input",
        {"instruction": "Name a fruit.", "input": "", "output": "Fig"},
        "",
        [(ASKED, " Fig</s>")],
    ),
    (
        "ranked answers, expanded to pairs: prompt, answers",
        {"prompt": "Name a fruit.", "answers": ["Fig", "Fig?", "Stone"]},
        "",
        [(ASKED, " Fig</s>", " Fig?</s>"), (ASKED, " Fig</s>", " Stone</s>"), (ASKED, " Fig?</s>", " Stone</s>")],
    ),
    (
        "ranked answers, expanded to pairs: prompt, answers from responses, scores",
        {"prompt": "Name a fruit.", "responses": ["Stone", "Fig", "Pear"], "scores": [0.1, 0.9, 0.9]},
        "",
        [(ASKED, " Fig</s>", " Stone</s>"), (ASKED, " Pear</s>", " Stone</s>")],
    ),
    (
        "ranked answers, expanded to pairs: prompt, answers, ranks",
        {"prompt": "Name a fruit.", "answers": ["Stone", "Fig"], "ranks": [2, 1]},
        "",
        [(ASKED, " Fig</s>", " Stone</s>")],
    ),
    ("prompts only: prompt", {"prompt": "Name a fruit."}, "", [(ASKED,)]),
    (
        "preference pairs: prompt from question, chosen from best, rejected from worst",
        {"question": "Name a fruit.", "best": "Fig", "worst": "Stone", "prompt": "not this"},
        "prompt=question,chosen=best,rejected=worst",
        [(ASKED, " Fig</s>", " Stone</s>")],
    ),
]


@pytest.mark.parametrize(("says", "row", "columns", "expected"), CASES)
def test_a_shape_is_recognised_and_its_responses_count(says, row, columns, expected, counted) -> None:
    shape = recognise([row], parse_columns(columns))
    assert shape.says == says
    assert counted(shape.adapt(row)) == expected


def test_plain_text_is_for_the_pretraining_mix() -> None:
    shape = recognise([{"text": "Once."}], {})
    assert shape.says == "plain text: text"
    assert list(shape.adapt({"text": "Once."})) == [Example(text="Once.")]
    assert list(shape.adapt({"text": " \n"})) == []


def test_a_margin_is_read_also_as_text() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "0.5"}
    shape = recognise([row], {})
    assert shape.says == "preference pairs: prompt, chosen, rejected, margin"
    assert list(shape.adapt(row)) == [Example(ask("q"), "a", "b", margin=0.5)]


def test_only_the_best_of_ranked_answers_is_a_demonstration() -> None:
    """Second-best answers used to end up in stage 1 as answers to learn."""
    row = {"prompt": "q", "answers": ["a", "b", "c"]}
    examples = [e for e in recognise([row], {}).adapt(row) if isinstance(e, Example)]
    assert [(e.chosen, e.demonstrates) for e in examples] == [("a", 1), ("a", 1), ("b", 0)]


def test_text_without_speakers_is_a_prompt_as_it_stands(counted) -> None:
    row = {"prompt": "Who said 'Human: hello'?", "chosen": "Nobody.", "rejected": "I."}
    assert counted(recognise([row], {}).adapt(row))[0][0] == "Human: Who said 'Human: hello'?\n\nAssistant:"


def test_turns_of_one_speaker_in_a_row_are_joined() -> None:
    turns = transcript("\n\nHuman: hi\n\nHuman: there\n\nAssistant: hello")
    assert [(t["role"], t["content"]) for t in turns] == [("user", "hi\n\nthere"), ("assistant", "hello")]


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD_ROWS = [
    (PAIR | {"chosen": 7}, "chosen is a number, not text"),
    (PAIR | {"prompt": "  "}, "prompt is empty"),
    (PAIR | {"chosen": None}, r"chosen is empty \(null\), not text"),
    (PAIR | {"chosen": "a\0"}, "chosen contains a NUL byte"),
    (PAIR | {"chosen": "x" * 4_000_001}, "chosen has 4,000,001 characters, more than 4,000,000"),
    (PAIR | {"margin": "wide"}, "margin is 'wide', not a number"),
    (PAIR | {"margin": float("nan")}, "margin is nan, not a finite number"),
    (PAIR | {"prompt": [ANSWER]}, r"roles are out of order \(assistant\): expected user, found assistant"),
    (PAIR | {"prompt": [USER, USER]}, "expected assistant, found user"),
    (PAIR | {"prompt": [USER, ANSWER]}, r"the prompt must end with a user turn \(user, assistant\)"),
    (PAIR | {"prompt": [USER, SYSTEM]}, r"roles are out of order \(user, system\)"),
    (
        PAIR | {"prompt": [{"role": "wizard", "content": "x"}]},
        "the role 'wizard', not system, developer, user, assistant or tool",
    ),
    (PAIR | {"prompt": ["hello"]}, r"prompt \(message 1\) is text, not a \{role, content\} mapping"),
    (PAIR | {"prompt": [{"role": "user", "content": None}]}, r"prompt \(message 1\) is empty \(null\), not text"),
    (PAIR | {"chosen": [USER]}, "chosen does not end with an assistant turn"),
    (PAIR | {"chosen": [USER, ANSWER]}, "chosen does not continue the prompt"),
    ({"chosen": f"{HUMAN} a", "rejected": "\n\nHuman: other\n\nAssistant: b"}, "no common prompt"),
    ({"chosen": "a", "rejected": "b"}, "chosen is not a transcript .* and there is no prompt column"),
    ({"chosen": HUMAN.removesuffix("Assistant:"), "rejected": HUMAN}, "chosen does not end with an assistant turn"),
    ({"messages": []}, "messages has no turn"),
    (
        {"messages": [ANSWER]},
        "messages begins with an assistant turn, not with a user.s; text without a question belongs in a column",
    ),
    ({"messages": "hello"}, "messages is text, not a list of messages"),
    ({"prompt": "q", "answers": ["a", "b"], "scores": [1]}, "2 answers but 1 scores or ranks"),
    ({"prompt": "q", "answers": "a"}, "answers is text, not a list of texts; --columns answers= leaves the column out"),
    ({"instruction": "q", "output": 5}, "chosen is a number, not text"),
    ({"text": 5}, "text is not text"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_in_one_clause(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        list(recognise([row], {}).adapt(row))


def test_a_later_row_without_a_column_names_the_nearest() -> None:
    shape = recognise([PAIR], {})
    with pytest.raises(RowError, match="has no column 'chosen'; did you mean 'choosen'"):
        list(shape.adapt({"prompt": "q", "choosen": "a", "rejected": "b"}))


def test_columns_of_no_shape_are_answered_with_a_way_out() -> None:
    with pytest.raises(RowError, match=r"'promt', 'id', which fit no known shape \('promt'; did you mean 'prompt'\)"):
        recognise([{"promt": "q", "id": 3}], {})


def test_columns_given_must_exist_and_be_known() -> None:
    with pytest.raises(RowError, match="has no column 'quesion'; did you mean 'question'"):
        recognise([{"question": "q", "best": "a"}], parse_columns("prompt=quesion,chosen=best"))
    with pytest.raises(DataError, match=r"'chozen' is not one of .*did you mean 'chosen'"):
        parse_columns("chozen=best")
    with pytest.raises(DataError, match="write it as name=column"):
        parse_columns("prompt")
