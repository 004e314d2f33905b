"""Ids, masks and truncation: what is kept is whole turns of the template and ends with the end token."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.collate import collate_demonstrations
from data.encode import (
    CUT_PROMPT,
    CUT_RESPONSE,
    EMPTY_RESPONSE,
    END_INSIDE,
    LONG_PROMPT,
    LONG_RESPONSE,
    SAME_RESPONSES,
    UNRENDERABLE,
    Encoder,
    Kind,
    Limits,
)
from data.example import ask, prompt_json
from rlhf.errors import DataError
from rlhf.template import Message, Template, install_template
from tests.helpers.tiny import tiny_tokenizer

CHAT_MARKUP = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '[/]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def _shared() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


SHARED = _shared()


@pytest.fixture(scope="module")
def bracketed() -> Template:
    """A template with markup on both sides of each turn, whose end of turn is text: "[/]" is not a special token."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_MARKUP
    return Template(tokenizer)


def encode(
    template: Template, limits: Limits, prompt: Any, chosen: str = "a", rejected: str = "b", kind: Kind = "preferences"
) -> dict[str, Any]:
    turns = ask(prompt) if isinstance(prompt, str) else prompt
    batch = {"prompt": [prompt_json(turns)], "chosen": [chosen], "rejected": [rejected], "margin": [0.0]}
    batch |= {"source": [0], "where": ["a.jsonl, line 1"]}
    return {name: values[0] for name, values in Encoder(template, limits, kind)(batch).items()}


def text(template: Template, ids: list[int]) -> str:
    return str(template.tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("keep_end", "[user]klmnopqrstuvwxyz[/][assistant]"),
        ("keep_start", "[user]abcdefghijklmnop[/][assistant]"),
    ],
)
def test_a_long_prompt_loses_text_but_no_markup(bracketed: Template, policy: str, expected: str) -> None:
    """Cutting ids at the left used to cut the beginning of the template's last turn away."""
    row = encode(bracketed, Limits(36, 8, prompt_truncation=policy), "abcdefghijklmnopqrstuvwxyz")
    assert text(bracketed, row["prompt_ids"]) == expected
    assert len(expected) == 36
    assert row["outcome"] == CUT_PROMPT


def test_the_oldest_turns_go_first_and_the_system_turn_stays(bracketed: Template) -> None:
    turns: list[Message] = [{"role": "system", "content": "S"}]
    for i in range(3):
        turns.append({"role": "user", "content": f"u{i}"})
        turns.append({"role": "assistant", "content": f"a{i}"})
    turns.append({"role": "user", "content": "last"})
    row = encode(bracketed, Limits(70, 8), turns)
    assert text(bracketed, row["prompt_ids"]) == "[system]S[/][user]u2[/][assistant]a2[/][user]last[/][assistant]"
    assert row["outcome"] == CUT_PROMPT


def test_a_long_prompt_is_dropped_on_request_or_where_the_markup_alone_is_longer(bracketed: Template) -> None:
    for limits in (Limits(25, 8, prompt_truncation="drop"), Limits(15, 8)):
        row = encode(bracketed, limits, "abcdefghijklmnopqrstuvwxyz")
        assert row["outcome"] == LONG_PROMPT
        assert row["prompt_ids"] == row["chosen_ids"] == []


def test_stored_messages_of_a_cut_prompt_are_those_of_its_ids(bracketed: Template) -> None:
    import json

    row = encode(bracketed, Limits(36, 8), "abcdefghijklmnopqrstuvwxyz", kind="prompts")
    assert bracketed.prompt_ids(json.loads(row["messages"])) == row["prompt_ids"]


def test_responses_at_and_beyond_the_limit(template: Template) -> None:
    # " four" is five tokens, the end token the sixth
    assert encode(template, Limits(99, 6), "q", "four")["outcome"] == 0
    assert encode(template, Limits(99, 5), "q", "four")["outcome"] == LONG_RESPONSE
    assert encode(template, Limits(99, 5), "q", "x", "four")["outcome"] == LONG_RESPONSE
    row = encode(template, Limits(99, 5, response_truncation="keep_start"), "q", "four")
    assert row["outcome"] == CUT_RESPONSE
    assert text(template, row["chosen_ids"]) == " fou</s>"


def test_responses_that_teach_nothing_are_dropped_and_counted(template: Template) -> None:
    assert encode(template, Limits(99, 9), "q", " ", "b")["outcome"] == EMPTY_RESPONSE
    assert encode(template, Limits(99, 9), "q", "a", "a")["outcome"] == SAME_RESPONSES
    assert encode(template, Limits(99, 9), "q", "a", "")["outcome"] == 0  # an empty answer may well be the worse one


def test_a_template_that_strips_or_does_not(template: Template) -> None:
    """Ids are those that generation will see: what the template strips is stripped here, what it keeps is kept."""
    from rlhf.template import HUMAN_ASSISTANT

    stripping = tiny_tokenizer()
    stripping.chat_template = HUMAN_ASSISTANT.replace("{{ bos_token if add_bos else '' }}", "").replace(
        "message['content'] + eos_token", "(message['content'] | trim) + eos_token"
    )
    for one, expected in ((Template(stripping), " Fig</s>"), (template, "  Fig\n</s>")):
        assert text(one, encode(one, Limits(99, 20), "q", " Fig\n")["chosen_ids"]) == expected


def test_ids_are_those_of_the_template_alone(template: Template) -> None:
    """Encoding in batches must be the same as prompt_ids and response_ids, which rollouts and chat use."""
    turns: tuple[Message, ...] = ask("Ünïcode 🙂?", system="Be brief.")
    row = encode(template, Limits(200, 50), turns, "Ja 🙂", "b")
    assert row["prompt_ids"] == template.prompt_ids(turns)
    assert row["chosen_ids"] == template.response_ids("Ja 🙂")
    demonstration = encode(template, Limits(200, 50), turns, "Ja 🙂", kind="demonstrations")
    assert demonstration["input_ids"] == row["prompt_ids"] + row["chosen_ids"]
    assert demonstration["prompt_length"] == len(row["prompt_ids"])


def test_a_tokenizer_that_adds_bos_gets_it_once() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    install_template(tokenizer)
    row = encode(Template(tokenizer), Limits(99, 20), "q", "a", kind="demonstrations")
    assert row["input_ids"][0] == 1
    assert row["input_ids"].count(1) == 1


def test_an_end_token_inside_a_response_drops_it(template: Template) -> None:
    """Text that spells the end token is tokenised as one; the model would learn to stop there and go on."""
    assert encode(template, Limits(99, 20), "q", "a</s>b")["outcome"] == END_INSIDE


def test_a_prompt_that_the_template_refuses_is_named_or_counted() -> None:
    """Some templates know no system turn and raise."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + CHAT_MARKUP
    )
    template, turns = Template(tokenizer), ask("q", system="S")
    assert encode(template, Limits(99, 20), turns)["outcome"] == UNRENDERABLE
    batch = {"prompt": [prompt_json(turns)], "chosen": ["a"], "source": [0], "where": ["a.jsonl, line 7"]}
    with pytest.raises(DataError, match=r"a\.jsonl, line 7: the chat template cannot be rendered: no system turn here"):
        Encoder(template, Limits(99, 20), "demonstrations", skip_bad_rows=False)(batch)


words = st.text(st.sampled_from("ab 🙂ß\n"), max_size=30)
turns_of = st.lists(words.filter(str.strip), min_size=1, max_size=5).map(
    lambda texts: [
        {"role": "user" if i % 2 == 0 else "assistant", "content": t}
        for i, t in enumerate(texts[: len(texts) - (len(texts) + 1) % 2])
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    turns_of,
    words,
    words,
    st.integers(18, 60),
    st.integers(2, 20),
    st.sampled_from(["keep_end", "keep_start", "drop"]),
    st.sampled_from(["keep_start", "drop"]),
)
def test_whatever_the_text_kept_rows_fit_and_count_only_their_response(
    turns: list[Message],
    chosen: str,
    rejected: str,
    longest_prompt: int,
    longest_response: int,
    prompt_policy: Literal["keep_end", "keep_start", "drop"],
    response_policy: Literal["keep_start", "drop"],
) -> None:
    template = SHARED
    limits = Limits(longest_prompt, longest_response, prompt_policy, response_policy)
    row = encode(template, limits, turns, chosen, rejected)
    demonstration = encode(template, limits, turns, chosen, kind="demonstrations")
    end = template.end_token_id
    if row["prompt_ids"]:
        assert len(row["prompt_ids"]) <= longest_prompt
        assert text(template, row["prompt_ids"]).endswith("\n\nAssistant:")
        assert text(template, row["prompt_ids"]).startswith("Human: ")
        for name in ("chosen_ids", "rejected_ids"):
            assert row[name][-1] == end
            assert end not in row[name][:-1]
            assert len(row[name]) <= longest_response
        assert row["chosen_ids"] != row["rejected_ids"]
    if demonstration["input_ids"]:
        batch = collate_demonstrations([demonstration], pad_token_id=0)
        kept = batch.input_ids_BT[batch.loss_mask_BT].tolist()
        whole = template.response_ids(chosen)
        assert kept[-1] == end
        assert kept[:-1] == whole[: len(kept) - 1]
        assert kept == whole or demonstration["outcome"] & CUT_RESPONSE
        assert demonstration["input_ids"][: demonstration["prompt_length"]] == (
            template.prompt_ids(turns)
            if not demonstration["outcome"] & CUT_PROMPT
            else demonstration["input_ids"][: -len(kept)]
        )
