"""Prompts and turns as text and ids: one boundary, one end token, in training and in generation."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from rlhf.errors import ModelError
from rlhf.template import Message, Template, install_template
from tests.helpers.tiny import tiny_tokenizer

QUESTION: list[Message] = [{"role": "user", "content": "Why?"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template(chat_template: str | None = None, *special: str) -> Template:
    tokenizer: Any = tiny_tokenizer()
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = chat_template
    install_template(tokenizer)
    return Template(tokenizer)


def chatml() -> Template:
    return template(CHATML, "<|im_start|>", "<|im_end|>")


def decoded(t: Template, ids: list[int]) -> str:
    return str(t.tokenizer.decode(ids))


def test_the_projects_own_template() -> None:
    t = template()
    assert t.render(QUESTION) == "Human: Why?\n\nAssistant:"
    assert decoded(t, t.response_ids("So.")) == " So.</s>"
    assert t.end_token_id == t.tokenizer.eos_token_id == 2
    assert t.prefix == " "


def test_turns_and_system_text() -> None:
    talk: list[Message] = [
        {"role": "system", "content": "Be kind."},
        *QUESTION,
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Oh?"},
    ]
    assert template().render(talk) == "Be kind.\n\nHuman: Why?\n\nAssistant: So.</s>\n\nHuman: Oh?\n\nAssistant:"


def test_the_end_of_turn_is_the_templates_own() -> None:
    """`<|im_end|>` is what ends a turn, not EOS; the line break that the template writes after it does not count."""
    t = chatml()
    assert t.end_token == "<|im_end|>"
    assert t.end_token_id != t.tokenizer.eos_token_id
    assert decoded(t, t.response_ids("So.")) == "So.<|im_end|>"
    assert t.render(QUESTION) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_an_end_of_turn_without_a_role_is_found() -> None:
    """Phi 3's `<|end|>` is a special token that the tokenizer's config gives no role; its EOS is another."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|end|>")
    t = Template(tokenizer)
    assert t.end_token == "<|end|>"
    assert t.text(t.response_ids("So.")) == "So."


@pytest.mark.parametrize("make", [template, chatml])
@pytest.mark.parametrize("text", ["So.", "", " spaced ", "two\nlines\n\n", "é ≠ e"])
def test_prompt_and_response_are_the_whole_conversation(make: Any, text: str) -> None:
    """Joined they are what the template renders, up to what it writes after the end token."""
    t = make()
    ids = t.prompt_ids(QUESTION) + t.response_ids(text)
    whole = t._apply([*QUESTION, {"role": "assistant", "content": text}], add_generation_prompt=False)
    assert whole.startswith(decoded(t, ids))
    assert whole[len(decoded(t, ids)) :].strip() == ""


@pytest.mark.parametrize("make", [template, chatml])
def test_text_comes_back_from_generated_ids(make: Any) -> None:
    t = make()
    assert t.text(t.response_ids("So it is.")) == "So it is."
    assert t.text(t.response_ids("So it is.", end=False)) == "So it is."
    assert t.response_ids("x", end=False) == t.response_ids("x")[:-1]


def test_a_template_that_strips_is_followed() -> None:
    """Llama's templates trim the content; training on the untrimmed text would teach what chat never renders."""
    t = template(CHATML.replace("m['content']", "m['content'] | trim"), "<|im_start|>", "<|im_end|>")
    assert t.strips
    assert t.response_ids("  So. \n") == t.response_ids("So.")
    assert not chatml().strips


def test_bos_is_written_once_where_the_tokenizer_adds_it() -> None:
    from tokenizers import processors

    tokenizer: Any = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert install_template(tokenizer)
    t = Template(tokenizer)
    assert t.prompt_ids(QUESTION)[0] == 1
    assert t.prompt_ids(QUESTION).count(1) == 1
    assert 1 not in t.response_ids("So.")
    assert not install_template(tokenizer), "it has one now"


@pytest.mark.parametrize(
    "chat_template, message",
    [
        ("{% if add_generation_prompt %}go{% endif %}{{ messages[0].content }}", "is not the beginning"),
        ("{{ messages[0].content }}", "does not write the content of an assistant turn"),
        ("{{ raise_exception('only pairs') }}", "cannot be rendered.*only pairs"),
        ("{% for %}", "cannot be rendered"),
    ],
)
def test_a_template_without_a_boundary_is_refused(chat_template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        template(chat_template)


def test_no_end_token_is_refused() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS token: a response could never end"):
        install_template(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}.{% endfor %}"
    with pytest.raises(ModelError, match="no EOS token and its chat template writes none"):
        Template(tokenizer)
