"""Prompts and responses with thoughts: together they are what the template writes."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.rendering import THINKING, Message, Rendering, thinking
from rlhf.template import HUMAN_ASSISTANT, Template
from tests.helpers.templates import EXACT, FORGETFUL, THOUGHTS, template_of, unmarked

QUESTION: list[Message] = [{"role": "user", "content": "Why?"}]
TALK: list[Message] = [*QUESTION, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Sure?"}]


def written(template: Template, messages: Any, field: str, answer: str, thoughts: str) -> str:
    """The conversation as transformers renders it, with the thoughts where the template looks for them."""
    turn = {"role": "assistant", "content": answer, **({field: thoughts} if thoughts else {})}
    tokenizer: Any = template.tokenizer
    return tokenizer.apply_chat_template([*messages, turn], tokenize=False, **dict.fromkeys(THINKING, True))


@pytest.mark.parametrize("name", THOUGHTS)
@pytest.mark.parametrize("messages", [QUESTION, TALK], ids=["a question", "a talk"])
@pytest.mark.parametrize("thoughts", ["Hm, let me see.\nYes.", ""], ids=["thoughts", "none"])
def test_prompt_thoughts_and_answer_are_the_conversation(name: str, messages: list[Message], thoughts: str) -> None:
    source, field = THOUGHTS[name]
    template, asked = template_of(source), thinking(messages)
    assert template.writes_thoughts and template.thinks(asked)
    [prompt] = template.encode([template.prompt_text(asked)])
    [response] = template.encode([template.response_text("Blue.", thoughts, thinks=True)], responses=True)
    whole = written(template, messages, field, "Blue.", thoughts)
    ids = template.tokenizer(whole, add_special_tokens=False)["input_ids"]
    found = [*prompt, *response, template.end_token_id]
    assert ids[: len(found)] == found  # type: ignore[index]
    assert template.tokenizer.decode(ids[len(found) :]).strip() == ""  # type: ignore[index]


@pytest.mark.parametrize("name", THOUGHTS)
def test_without_thoughts_a_prompt_is_as_before(name: str) -> None:
    """Sampling goes on as it did: the answer alone, behind an empty block where the template has one."""
    template = template_of(THOUGHTS[name][0])
    assert not template.thinks(QUESTION)
    before = template.render(QUESTION)
    assert before != template.render(thinking(QUESTION)) or name == "always thinks"
    talk: list[Message] = [*QUESTION, {"role": "assistant", "content": "Blue."}]
    whole = Rendering(template.tokenizer)(talk, add_generation_prompt=False)
    assert whole.startswith(before.split("<think>")[0])
    assert template.response_text("Blue.") == "Blue."


def test_control_tokens_in_thoughts_are_text() -> None:
    template = template_of(THOUGHTS["Qwen3"][0])
    [ids] = template.encode([template.response_text("a", "<|im_end|> b", thinks=True)], responses=True)
    assert template.end_token_id not in ids
    assert template.tokenizer.decode(ids) == "<think>\n<|im_end|> b\n</think>\n\na"
    [ids] = template.encode([template.response_text("a", "\n b \n", thinks=True)], responses=True)
    assert template.tokenizer.decode(ids) == "<think>\n b \n</think>\n\na"  # as it strips them


def test_harmonys_own_tokens_stay_tokens() -> None:
    """A mark that the template writes inside of a response is one, one that the text spells is not."""
    template = template_of(THOUGHTS["harmony"][0])
    [ids] = template.encode([template.response_text("a <|end|>", "t", thinks=True)], responses=True)
    end: int = template.tokenizer.convert_tokens_to_ids("<|end|>")  # type: ignore[assignment]
    assert ids.count(end) == 1


@pytest.mark.parametrize("source", [HUMAN_ASSISTANT, *EXACT.values(), FORGETFUL], ids=["ours", *EXACT, "forgetful"])
def test_templates_without_thoughts_write_none(source: str) -> None:
    template = template_of(unmarked(source))
    assert not template.writes_thoughts
    talk: list[Message] = [*QUESTION, {"role": "assistant", "content": "So.", "reasoning_content": "T"}, TALK[-1]]
    assert template.leaves_out_thoughts(talk)
    assert template.render(talk) == template.render(TALK)


def test_options_reach_the_template_and_may_forbid_thoughts() -> None:
    template = template_of(THOUGHTS["Qwen3"][0])
    no: list[Message] = [{**QUESTION[0], "options": {"enable_thinking": False}}]
    assert thinking(no) == no
    assert template.render(no) == template.render(QUESTION)
    effort = template_of("{{ effort or 'none' }}" + EXACT["ChatML"])
    assert effort.render([{**QUESTION[0], "options": {"effort": "high"}}]).startswith("high<|im_start|>user")
    assert effort.render(QUESTION).startswith("none")


def test_the_empty_block_of_a_template_without_a_field_belongs_to_the_response() -> None:
    """`enable_thinking` of a row leaves the block to the model, which learns to close it."""
    template = template_of(unmarked(EXACT["blocks of thoughts in all turns"]))
    asked: list[Message] = [{**QUESTION[0], "options": {"enable_thinking": True}}]
    assert template.render(asked).endswith("assistant\n")
    assert template.response_text("a", thinks=True) == "<think>\n\n</think>\n\na"
    assert template.render(QUESTION).endswith("<think>\n\n</think>\n\n")
