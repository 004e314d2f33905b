"""Every assistant turn that counts is learned, exactly as the model says it, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encode import CUT_PROMPT, LONG_RESPONSE, OWN_ROW, Encoder, Learn, Limits
from data.example import assistant_turns, prompt_json
from rlhf.rendering import Message
from rlhf.template import Template, install_template
from tests.helpers.templates import EXACT, FORGETFUL, WIDER, by_transformers, template_of, unmarked
from tests.helpers.tiny import tiny_tokenizer

WIDE = Limits(2000, 500)
TALK: list[Message] = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "🙂 Fig"},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Pear\n"},
    {"role": "user", "content": "More!"},
    {"role": "assistant", "content": "Plum"},
]
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def own() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


def rows_of(
    template: Template,
    talk: Sequence[Message],
    *,
    learned: Sequence[int] | None = None,
    limits: Limits = WIDE,
    learn: Learn = "all",
) -> list[dict[str, Any]]:
    """The rows of a conversation that ends with an assistant turn."""
    prompt = list(talk[:-1])
    earlier = list(assistant_turns(prompt) if learned is None else learned)
    batch = {"prompt": [prompt_json(prompt)], "chosen": [talk[-1]["content"]], "learned": [earlier]}
    found = Encoder(template, limits, "demonstrations", learn=learn)({**batch, "source": [0], "where": ["line 1"]})
    return [{name: values[i] for name, values in found.items()} for i in range(len(found["outcome"]))]


def said(template: Template, row: dict[str, Any]) -> list[str]:
    """The text of each learned part of a row."""
    edges = row["learned"]
    parts = [row["input_ids"][a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [str(template.tokenizer.decode(part)) for part in parts]


def mask(row: dict[str, Any]) -> list[int]:
    edges = row["learned"]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    return [int(any(a <= i < b for a, b in spans)) for i in range(len(row["input_ids"]))]


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_masks_are_those_of_the_marks_with_and_without_them(name: str, system: bool) -> None:
    if system and name == "Gemma":
        return
    talk = [SYSTEM, *TALK] if system else TALK
    marked = template_of(EXACT[name])
    ids, wanted = by_transformers(marked, talk)
    for template in (marked, template_of(unmarked(EXACT[name]))):
        [row] = rows_of(template, talk)
        assert row["input_ids"] == ids[: len(row["input_ids"])]
        assert mask(row) == wanted[: len(row["input_ids"])]
        assert not any(wanted[len(row["input_ids"]) :])
        assert row["turns"] == 3
        assert row["input_ids"] == template.prompt_ids(talk[:-1]) + template.response_ids("Plum")


@pytest.mark.parametrize("name", WIDER)
def test_wider_marks_are_followed(name: str) -> None:
    """A line break behind the end token, the header, an EOS at the very end: what the template's author marked."""
    template = template_of(WIDER[name])
    [row] = rows_of(template, TALK)
    ids, wanted = by_transformers(template, TALK)
    last = max(i for i, counts in enumerate(wanted) if counts) + 1
    assert row["input_ids"] == ids[:last]
    assert mask(row) == wanted[:last]
    assert row["turns"] == 3


def test_the_projects_own_template_learns_every_turn_in_one_row() -> None:
    template = own()
    [row] = rows_of(template, [SYSTEM, *TALK])
    assert said(template, row) == [" 🙂 Fig</s>", " Pear\n</s>", " Plum</s>"]
    assert row["input_ids"] == template.prompt_ids([SYSTEM, *TALK[:-1]]) + template.response_ids("Plum")
    assert row["prompt_length"] == len(template.prompt_ids([SYSTEM, *TALK[:-1]]))
    [row] = rows_of(template, [SYSTEM, *TALK], learn="last")
    assert said(template, row) == [" Plum</s>"]


@pytest.mark.parametrize("kind", ["first", "always", "legacy", "unigram"])
@pytest.mark.parametrize("name", ["ChatML", "Mistral", "Llama 3"])
def test_sentencepiece_has_the_same_spans(name: str, kind: str) -> None:
    talk: list[Message] = [{"role": m["role"], "content": "So it is"} for m in TALK]
    for source in (EXACT[name], unmarked(EXACT[name])):
        template = template_of(source, sentencepiece=kind)
        rows = rows_of(template, talk)
        ids, wanted = by_transformers(template_of(EXACT[name], sentencepiece=kind), talk)
        assert sum(row["turns"] for row in rows) == 3
        assert rows[0]["input_ids"] == ids[: len(rows[0]["input_ids"])]
        assert {"So it is", " So it is"} >= {
            text.replace(template.end_token, "") for r in rows for text in said(template, r)
        }
        if len(rows) == 1:
            assert mask(rows[0]) == wanted[: len(rows[0]["input_ids"])]


# --- turns that the conversation holds otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize("source", [FORGETFUL, unmarked(FORGETFUL)], ids=["marks", "no marks"])
def test_a_turn_that_is_rewritten_later_has_a_row_of_its_own(source: str) -> None:
    """Such a template drops the block of thoughts from all turns but the last: learned where it stands in the history,
    a turn would be learned behind a header that the model is never given."""
    template = template_of(source)
    rows = rows_of(template, TALK)
    assert [said(template, row) for row in rows] == [["Plum<|im_end|>"], ["Pear\n<|im_end|>"], ["🙂 Fig<|im_end|>"]]
    assert [row["outcome"] for row in rows] == [0, OWN_ROW, OWN_ROW]
    for row, turn in zip(rows, (5, 3, 1), strict=True):
        prompt = template.prompt_ids(TALK[:turn])
        assert row["input_ids"][: row["prompt_length"]] == prompt
        assert row["input_ids"] == prompt + template.response_ids(TALK[turn]["content"])


def test_a_turn_that_ends_otherwise_in_the_history_has_a_row_of_its_own() -> None:
    """This template ends a turn with text, so the end token is EOS, which the history does not have."""
    template = template_of(
        "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '[/]' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    rows = rows_of(template, TALK)
    assert [said(template, row) for row in rows] == [["Plum</s>"], ["Pear\n</s>"], ["🙂 Fig</s>"]]


def test_turns_that_share_a_history_share_a_row() -> None:
    """Only the thoughts before the last question are dropped: two answers to the same question stand in one row."""
    source = FORGETFUL.replace("m.role == 'user'", "m.role == 'user' and m.content != 'Go on.'", 1)
    talk: list[Message] = [*TALK[:2], *TALK[2:4], {"role": "user", "content": "Go on."}, TALK[5]]
    template = template_of(unmarked(source))
    rows = rows_of(template, talk)
    assert [said(template, row) for row in rows] == [["Pear\n<|im_end|>", "Plum<|im_end|>"], ["🙂 Fig<|im_end|>"]]


# --- what is not learned ----------------------------------------------------------------------------------------------


def test_turns_that_are_cut_with_their_prompt_are_not_learned_and_counted() -> None:
    template = own()
    whole = len(template.prompt_ids([SYSTEM, *TALK[:-1]]))
    [row] = rows_of(template, [SYSTEM, *TALK], limits=Limits(whole - 1, 20))
    assert row["outcome"] == CUT_PROMPT
    assert said(template, row) == [" Pear\n</s>", " Plum</s>"]
    assert (row["turns"], row["unlearned"]) == (2, 1)
    [row] = rows_of(template, [SYSTEM, *TALK], limits=Limits(40, 20))
    assert said(template, row) == [" Plum</s>"]
    assert (row["turns"], row["unlearned"]) == (1, 2)


def test_empty_turns_and_those_with_an_end_token_inside_are_context() -> None:
    talk: list[Message] = [*TALK]
    talk[1] = {"role": "assistant", "content": " \n"}
    talk[3] = {"role": "assistant", "content": "a</s>b"}
    template = own()
    [row] = rows_of(template, talk)
    assert said(template, row) == [" Plum</s>"]
    assert (row["turns"], row["unlearned"]) == (1, 2)


def test_a_dropped_conversation_has_no_rows_of_its_turns() -> None:
    [row] = rows_of(template_of(FORGETFUL), TALK, limits=Limits(2000, 3))
    assert row["outcome"] == LONG_RESPONSE
    assert (row["input_ids"], row["learned"], row["turns"]) == ([], [], 0)


@pytest.mark.parametrize("name", ["ChatML", "a line break behind the end"])
def test_a_cut_response_counts_as_far_as_it_is_kept(name: str) -> None:
    template, talk = template_of((EXACT | WIDER)[name]), [TALK[0], {"role": "assistant", "content": "Figs and more"}]
    limits = Limits(2000, 4, response_truncation="keep_start")
    [row] = rows_of(template, talk, limits=limits)  # type: ignore[arg-type]
    assert said(template, row)[0].startswith("Fig<|im_end|>")
    long = Limits(len(template.prompt_ids(TALK[:1])), 4, response_truncation="keep_start")
    [row] = rows_of(template, talk, limits=long)  # type: ignore[arg-type]
    assert len(row["input_ids"]) == long.max_prompt_length + long.max_response_length, "packs have no more room"
    assert said(template, row) == ["Fig<|im_end|>"]


PIECES = [
    "a",
    "B",
    " ",
    "\n",
    "é",
    "🙂",
    "<|im_end|>",
    "<|im_start|>",
    "<|header|>",
    "[INST]",
    "<think>",
    "</think>",
    "👩‍👩‍👧",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
SOURCES = [*EXACT.values(), *map(unmarked, EXACT.values()), WIDER["a line break behind the end"], FORGETFUL]
SOURCES += [unmarked(FORGETFUL)]
TEMPLATES = [own(), *map(template_of, SOURCES)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TEMPLATES),
    st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=4),
    TEXT,
    st.integers(20, 300),
)
def test_no_token_of_another_turn_ever_counts(
    template: Template, turns: list[tuple[str, str, bool]], system: str, longest: int
) -> None:
    """Whatever the texts spell: what is learned are the texts of turns that are to be learned, each with its end."""
    talk: list[Message] = [Message(role="system", content=system)] if system.strip() else []
    for asked, answered, _ in turns:
        talk += [Message(role="user", content=f"U{asked}U"), Message(role="assistant", content=answered)]
    first = len(talk) - 2 * len(turns)
    learned = [first + 2 * i + 1 for i, (*_, learn) in enumerate(turns[:-1]) if learn]
    thoughts = "<think>" in str(template.tokenizer.chat_template).replace("'<think>\n\n</think>\n\n'", "")
    found = rows_of(template, talk, learned=learned, limits=Limits(longest, 400))
    texts = [text.rstrip("\n") for row in found for text in said(template, row)]
    to_learn = [talk[place]["content"] for place in [*learned, len(talk) - 1]]
    endings = [template.written(text) for text in to_learn if text.strip() and template.end_token not in text]
    if thoughts and template._marking is not None:  # of the answer without its thoughts the marks are
        endings = [text.split("</think>")[-1].lstrip("\n") for text in endings]
    allowed = {f"{template.prefix}{text}{template.end_token}" for text in endings}
    allowed |= (
        {f" {text}{template.end_token}" for text in endings} if "[INST]" in template.tokenizer.chat_template else set()
    )
    assert set(texts) <= allowed
    kept = [row for row in found if row["input_ids"]]
    if kept:
        assert sum(row["turns"] for row in kept) + kept[0]["unlearned"] == len(to_learn)
        assert sum(row["turns"] for row in kept) == len(texts)
    if kept and longest > 250 and all(not row["outcome"] & CUT_PROMPT for row in kept):
        assert len(texts) == len(endings)
