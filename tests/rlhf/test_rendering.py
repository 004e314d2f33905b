"""Templates as text: the same text on every day, and without thinking aloud."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from data.encode import tokenizer_key
from rlhf import rendering
from rlhf.rendering import Message, Rendering
from tests.helpers.tiny import tiny_tokenizer

QUESTION: list[Message] = [{"role": "user", "content": "Why?"}]


def render(chat_template: Any, *, add_generation_prompt: bool = True) -> str:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    return Rendering(tokenizer)(QUESTION, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize(
    ("chat_template", "expected"),
    [
        (
            "{{ 'It is ' + strftime_now('%H:%M:%S %d %b %Y') + '. ' }}{{ messages[0].content }}",
            "It is 00:00:00 26 Jul 2024. Why?",
        ),
        (
            '{%- if strftime_now is defined %}\n{%- set today = strftime_now("%B %Y") %}\n{%- else %}\n'
            '{%- set today = "never" %}\n{%- endif %}\n{{- today + ": " }}{{ messages[0].content }}',
            "July 2024: Why?",
        ),
        ("\n{% set f = '%Y' %}\n  {% if true %}\n{{ strftime_now(f)|int + 1 }}{% endif %}", "\n2025"),
        (
            "{% macro head() %}{{ strftime_now('%d') }}{% endmacro %}{{ head() }}{{ strftime_now('%d' + ' %Y') }}",
            "2626 Jul 2024",
        ),
    ],
)
def test_a_date_is_always_the_same(chat_template: str, expected: str) -> None:
    """A template that writes the time gave each row another prompt, and the cache rows of another day."""
    assert render(chat_template) == expected


def test_the_key_of_the_token_cache_knows_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    dated, plain = tiny_tokenizer(), tiny_tokenizer()
    dated.chat_template, plain.chat_template = "{{ strftime_now('%Y') }}", "{{ messages[0].content }}"
    before = [tokenizer_key(t) for t in (dated, plain)]
    monkeypatch.setattr("data.encode.DATE", datetime(2031, 1, 1))
    after = [tokenizer_key(t) for t in (dated, plain)]
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)


def test_a_template_that_can_think_is_told_not_to() -> None:
    chat_template = (
        "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}"
    )
    assert render(chat_template) == "Why?/no_think"


def test_the_default_of_several_templates_is_used() -> None:
    """Some tokenizers have one more template, for tools."""
    named = {"default": "{{ strftime_now('%Y') }} {{ messages[0].content }}", "tool_use": "tools"}
    assert render(named) == "2024 Why?"


def test_formats_are_written_as_strings() -> None:
    """A quote in a format must not end the string that it is put in."""
    source = """{{ strftime_now('%Y "x"') }}"""
    assert render(source) == '2024 "x"'
    assert json.dumps('%Y "x"') in rendering.at_date(source)
