"""Templates as text: the same text on every day, and without thinking aloud."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from data.encode import tokenizer_key
from rlhf import rendering
from rlhf.rendering import Message, Rendering
from rlhf.template import HUMAN_ASSISTANT
from tests.helpers.templates import TOOLS
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


# --- what a template writes beside questions and answers --------------------------------------------------------------


def knows(chat_template: str) -> Any:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    return Rendering(tokenizer).knows


ANY_ROLE = "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"
CALLS = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + ARGUMENTS }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("chat_template", "arguments", "tools", "developer"),
    [
        (HUMAN_ASSISTANT, None, False, False),
        (ANY_ROLE, None, False, True),
        (CALLS.replace("ARGUMENTS", "(c.function.arguments | tojson)"), dict, False, True),
        (CALLS.replace("ARGUMENTS", "c.function.arguments"), str, False, True),
        (CALLS.replace("ARGUMENTS", "(c.function.arguments | string)"), str, False, True),
        (CALLS.replace("ARGUMENTS", "(c.function.arguments | tojson)").replace("m.role", "'x'"), None, False, False),
        (TOOLS, dict, True, False),
        (
            "{{ raise_exception('user first') if messages[0].role != 'user' }}{{ messages[0].content }}",
            None,
            False,
            False,
        ),
    ],
)
def test_what_a_template_knows_is_found_by_rendering(
    chat_template: str, arguments: Any, tools: bool, developer: bool
) -> None:
    found = knows(chat_template)
    assert (found.arguments, found.tools, found.developer) == (arguments, tools, developer)


def test_arguments_are_given_as_the_template_takes_them() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = CALLS.replace("ARGUMENTS", "' ' + c.function.arguments")
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}
    talk: Any = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
    ]
    assert Rendering(tokenizer)(talk, add_generation_prompt=False) == '[user]Why?[assistant]f {"x": "é"}[tool]1'


def test_a_developers_turn_is_the_systems_where_the_template_knows_none() -> None:
    talk: Any = [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}, *QUESTION]
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = HUMAN_ASSISTANT
    assert Rendering(tokenizer)(talk, add_generation_prompt=False).startswith("S\n\nD\n\nHuman: Why?")
    tokenizer.chat_template = ANY_ROLE
    assert Rendering(tokenizer)(talk[1:], add_generation_prompt=False) == "[developer]D[user]Why?"
