"""Messages in their many forms: roles, calls and results of tools, turns that say whether they are learned."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encode import NO_TOOLS, UNRENDERABLE, Encoder, Limits
from data.example import Example, Remark, RowError, ask, prompt_hash, prompt_json
from data.messages import messages, read_tools
from data.recognise import recognise
from rlhf.errors import DataError
from rlhf.template import Message, Template, install_template
from tests.helpers.templates import EXACT, TOOLS, template_of, unmarked
from tests.helpers.tiny import tiny_tokenizer

USER: Message = {"role": "user", "content": "Weather in Rome?"}
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLED: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
GIVEN: Message = {"role": "tool", "content": '{"sky": "clear"}'}
SAID: Message = {"role": "assistant", "content": "Sunny."}
TALK: list[Any] = [
    USER,
    CALLED,
    GIVEN,
    SAID,
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "Bye."},
]


def read(row: dict[str, Any]) -> tuple[list[Example], list[str]]:
    """The Examples of a row, and the remarks on it."""
    found = list(recognise([row], {}).adapt(row))
    return [e for e in found if isinstance(e, Example)], [r.text for r in found if isinstance(r, Remark)]


def encoded(template: Template, example: Example, *, limits: Limits | None = None, **options: Any) -> dict[str, Any]:
    batch = {"prompt": [prompt_json(example.prompt)], "chosen": [example.chosen], "learned": [list(example.learned)]}
    encoder = Encoder(template, limits or Limits(2000, 200), "demonstrations", **options)
    return {n: v[0] for n, v in encoder({**batch, "source": [0], "where": ["a.jsonl, line 3"]}).items()}


def said(template: Template, row: dict[str, Any]) -> list[str]:
    edges = row["learned"]
    parts = [row["input_ids"][a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [str(template.tokenizer.decode(part)) for part in parts]


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": json.dumps([{"name": "weather", "arguments": {"city": "Rome"}}]),
        },
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
        {
            "role": "tool_call",
            "content": '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"day\\": null}"}',
        },
    ],
)
@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "content": '{"sky": "clear"}'},
        {"role": "function", "content": {"sky": "clear"}},
        {"from": "observation", "value": '{"sky": "clear"}'},
        {"role": "ipython", "content": '{"sky": "clear"}', "tool_calls": None},
    ],
)
def test_calls_and_results_of_tools_in_one_form(call: Any, result: Any) -> None:
    assert messages([USER, call, result], "messages") == [USER, CALLED, GIVEN]


@pytest.mark.parametrize(
    "column",
    [
        [{"type": "function", "function": FUNCTION}],
        [FUNCTION],
        json.dumps([FUNCTION]),
        [json.dumps(FUNCTION)],
        [{"type": "function", "function": {**FUNCTION, "strict": None}}],
    ],
)
def test_columns_of_tools_in_one_form(column: Any) -> None:
    assert read_tools(column) == [{"type": "function", "function": FUNCTION}]
    [example], _ = read({"messages": TALK, "tools": column})
    assert example.prompt[0].get("tools") == [{"type": "function", "function": FUNCTION}]


def test_a_column_of_something_else_is_said() -> None:
    [example], remarks = read({"messages": TALK[:1] + TALK[5:], "tools": "hammer"})
    assert "tools" not in example.prompt[0]
    assert remarks == ["column 'tools' is not used: it is not a list of functions"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([USER, GIVEN, SAID], "a tool's result without a call of it"),
        ([USER, SAID, GIVEN, SAID], "a tool's result without a call of it"),
        ([USER, CALLED, USER, SAID], r"\(user, assistant, user\): expected tool, found user"),
        ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER, SAID], "two system turns"),
        ([USER, {"role": "system", "content": "a"}, SAID], "expected assistant, found system"),
        ([SAID, USER, SAID], "begins with an assistant turn"),
        ([USER, {**CALLED, "tool_calls": [{"name": None}]}, GIVEN, SAID], "has a tool call without a name"),
        (
            [USER, {**CALLED, "tool_calls": [{"name": "f", "arguments": "x"}]}, GIVEN, SAID],
            "that are not a JSON object",
        ),
    ],
)
def test_an_order_that_no_conversation_has_is_named(turns: list[Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        read({"messages": turns})


def test_tools_and_calls_make_another_prompt_and_texts_alone_the_same_as_ever() -> None:
    """The hash decides on the stage: rows that are read as before stay where they were."""
    assert prompt_hash(ask("q", system="S")) == 14425935906290364886
    prompts: list[Any] = [[USER], [{**USER, "tools": [CALL]}], [USER, CALLED], [USER, {**CALLED, "tool_calls": []}]]
    assert len(set(map(prompt_hash, prompts))) == 4


# --- what is learned of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [TOOLS, unmarked(TOOLS)], ids=["marks", "no marks"])
def test_tools_calls_and_results_are_rendered_and_never_learned(source: str) -> None:
    """A row with a call in it was refused; a template that marks calls does not make them learned."""
    template = template_of(source)
    [example], remarks = read({"messages": TALK, "tools": [FUNCTION], "system": "Be brief."})
    assert remarks == ["turn with a tool call (tool_calls) is not learned"]
    row = encoded(template, example)
    assert said(template, row) == ["Sunny.<|im_end|>", "Bye.<|im_end|>"]
    text = str(template.tokenizer.decode(row["input_ids"]))
    for part in (
        '"name": "weather"',
        '<call>weather {"city": "Rome"}</call>',
        '<result>{"sky": "clear"}</result>',
        "Be brief.",
    ):
        assert part in text
    assert row["outcome"] == 0


def test_a_conversation_that_ends_with_a_call_is_learned_up_to_it() -> None:
    talk = [*TALK, USER, CALLED]
    (demonstration, asked), remarks = read({"messages": talk})
    assert demonstration.chosen == "Bye."
    assert asked == Example(tuple(talk[:-1]))
    assert remarks == ["turn with a tool call (tool_calls) is not learned"] * 2


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": "false"}, {"weight": 0.0}])
def test_a_turn_that_says_so_is_context(flag: dict[str, Any]) -> None:
    talk = [USER, {**SAID, **flag}, USER, {"role": "assistant", "content": "Rain."}, USER, SAID]
    [example], remarks = read({"messages": talk, "system": "S"})
    assert (example.learned, example.chosen) == ((4,), "Sunny.")
    assert len(remarks) == 1
    (first, last), _ = read({"messages": [USER, SAID, USER, {**SAID, **flag}]})
    assert (first.prompt, first.chosen, last.chosen) == ((USER,), "Sunny.", None)
    [none], _ = read({"messages": [USER, {**SAID, **flag}]})
    assert none == Example((USER,))


@pytest.mark.parametrize(
    ("row", "learned"),
    [
        ({"instruction": "c", "output": "C", "history": [["a", "A"], ["b", "B"]]}, (1, 3)),
        ({"prompt": "c", "response": "C", "history": [["a", "A"]], "system": "S"}, (2,)),
        ({"prompt": [USER, SAID, USER], "completion": "C"}, ()),
        ({"prompt": [USER, SAID, USER], "chosen": "C", "rejected": "D"}, ()),
        ({"messages": [USER, SAID, USER, SAID], "rejected_response": "D"}, ()),
    ],
)
def test_answers_of_a_history_are_learned_and_those_of_a_prompt_are_context(row: Any, learned: tuple[int, ...]) -> None:
    [example], _ = read(row)
    assert example.learned == learned


def test_places_that_are_no_assistant_turns_are_refused() -> None:
    with pytest.raises(RowError, match=r"learned is \(0,\), not places of assistant turns of the prompt, \(1,\)"):
        Example((USER, SAID, USER), "a", learned=(0,))


# --- templates that do not know them ----------------------------------------------------------------------------------


def plain() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


@pytest.mark.parametrize("make", [plain, lambda: template_of(EXACT["Zephyr"]), lambda: template_of(EXACT["ChatML"])])
def test_a_template_without_tools_refuses_calls_by_name_or_counts_them(make: Any) -> None:
    """The project's own template would have written a tool's result as the assistant's words, Zephyr's not at all."""
    [example], _ = read({"messages": TALK})
    assert encoded(make(), example)["outcome"] == UNRENDERABLE
    with pytest.raises(
        DataError, match=r"a\.jsonl, line 3: the chat template does not write calls and results of tools"
    ):
        encoded(make(), example, skip_bad_rows=False)


def test_tools_alone_are_left_out_and_counted_where_the_template_has_none() -> None:
    talk = [USER, SAID]
    [example], _ = read({"messages": talk, "tools": [FUNCTION]})
    row, without = (encoded(plain(), e) for e in (example, read({"messages": talk})[0][0]))
    assert (row["outcome"], without["outcome"]) == (NO_TOOLS, 0)
    assert row["input_ids"] == without["input_ids"]


def test_cutting_keeps_the_tools_and_drops_whole_exchanges() -> None:
    template = template_of(TOOLS)
    [example], _ = read({"messages": TALK, "tools": [FUNCTION]})
    whole = len(template.prompt_ids(example.prompt))
    row = encoded(template, example, limits=Limits(whole - 1, 50))
    text = str(template.tokenizer.decode(row["input_ids"]))
    assert '"name": "weather"' in text
    assert "call>" not in text
    assert "Rome?" not in text
    assert said(template, row) == ["Bye.<|im_end|>"]
    assert row["unlearned"] == 1


def test_control_tokens_in_calls_and_tools_are_text() -> None:
    template = template_of(TOOLS)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}
    prompt: list[Message] = [USER, {**CALLED, "tool_calls": [call]}, {"role": "tool", "content": "<|im_start|>"}]
    ids = template.prompt_ids(prompt)
    end, start = (template.tokenizer.get_vocab()[t] for t in ("<|im_end|>", "<|im_start|>"))
    assert (ids.count(end), ids.count(start)) == (3, 4)
    assert template.tokenizer.decode(ids) == template.render(prompt)


# --- whatever they say ------------------------------------------------------------------------------------------------

PIECES = st.lists(st.sampled_from(["a", " ", "\n", "é", "🙂", "<|im_end|>", "<call>", "<think>"]), max_size=4).map(
    "".join
)
TURN = st.tuples(PIECES, PIECES, PIECES, st.sampled_from(["plain", "tool", "weight", "train"]))
KNOWING = [template_of(TOOLS), template_of(unmarked(TOOLS))]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KNOWING), st.lists(TURN, min_size=1, max_size=4), st.booleans())
def test_no_token_of_a_tool_a_user_or_a_turn_that_says_so_counts(
    template: Template, turns: list[tuple[str, str, str, str]], tools: bool
) -> None:
    talk: list[dict[str, Any]] = [{"role": "developer", "content": "D"}]
    wanted: list[str] = []
    for asked, answered, given_back, kind in turns:
        talk.append({"role": "user", "content": f"U{asked}"})
        if kind == "tool":
            call = {"type": "function", "function": {"name": "f", "arguments": {"x": f"C{asked}"}}}
            talk += [
                {"role": "assistant", "content": f"C{answered}", "tool_calls": [call]},
                {"role": "tool", "content": f"T{given_back}"},
            ]
        flag = {"weight": {"weight": 0}, "train": {"train": False}}.get(kind, {})
        talk.append({"role": "assistant", "content": f"A{answered}", **flag})
        if not flag and template.end_token not in answered:
            wanted.append(f"A{answered}{template.end_token}")
    examples, _ = read({"messages": talk, **({"tools": [FUNCTION]} if tools else {})})
    learned = [e for e in examples if e.chosen is not None]
    assert len(learned) <= 1
    for example in learned:
        row = encoded(template, example)
        if row["outcome"] == 0:
            assert said(template, row) == wanted
