"""Cuts at the edge of a character, at any limit, with fast and slow tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
import regex
from transformers import ByT5Tokenizer

from data.cutting import whole_characters, without_tokens
from data.encode import CUT_PROMPT, CUT_RESPONSE, LONG_PROMPT, LONG_RESPONSE, Encoder, Limits
from data.example import ask, prompt_json
from rlhf.template import Template, install_template
from tests.helpers.tiny import sentencepiece_tokenizer, tiny_tokenizer

FAMILY = "👩‍👩‍👧"  # 18 bytes, 5 code points, one character
TEXT = f"ab 你好ガ{FAMILY}é{FAMILY}ñ x"


def template(kind: str) -> Template:
    makers: dict[str, Any] = {
        "bytes": tiny_tokenizer,
        "slow": lambda: ByT5Tokenizer(extra_ids=0),
        "SentencePiece": sentencepiece_tokenizer,
        "Unigram": lambda: sentencepiece_tokenizer("unigram"),
    }
    tokenizer = makers[kind]()
    tokenizer.chat_template = None
    install_template(tokenizer)
    return Template(tokenizer)


TEMPLATES = {kind: template(kind) for kind in ("bytes", "slow", "SentencePiece", "Unigram")}


def encode(t: Template, limits: Limits, prompt: str, chosen: str = "So.") -> tuple[str, str, int]:
    """The texts of prompt and response, and the outcome."""
    batch = {"prompt": [prompt_json(ask(prompt))], "chosen": [chosen], "source": [0], "where": ["a.jsonl, line 1"]}
    row = {name: values[0] for name, values in Encoder(t, limits, "demonstrations")(batch).items()}
    ids = row["input_ids"]
    assert row["prompt_length"] <= limits.max_prompt_length or not ids
    assert len(ids) - row["prompt_length"] <= limits.max_response_length or not ids
    prompt_text = str(t.tokenizer.decode(ids[: row["prompt_length"]]))
    text = prompt_text.removeprefix("Human: ").removesuffix("\n\nAssistant:")
    return text, t.text(ids[row["prompt_length"] :]), row["outcome"]


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("policy", ["keep_end", "keep_start"])
def test_a_prompt_is_cut_between_characters_at_every_limit(kind: str, policy: str) -> None:
    """A cut inside a character of three tokens was taken back, and the row was dropped: of 120 Chinese prompts all at
    one limit, and none at the next."""
    t = TEMPLATES[kind]
    fixed, whole = len(t.prompt_ids(ask(""))), len(t.prompt_ids(ask(TEXT)))
    characters = regex.findall(r"\X", TEXT)
    parts = ["".join(characters[i:] if policy == "keep_end" else characters[:i]) for i in range(len(characters) + 1)]
    longest_before = ""
    for limit in range(fixed, whole + 1):
        text, _, outcome = encode(t, Limits(limit, 99, policy), TEXT)
        fitting = [part for part in parts if part.strip() and len(t.prompt_ids(ask(part))) <= limit]
        if limit == whole:
            assert (text, outcome) == (TEXT, 0)
        elif fitting:
            assert (text, outcome) == (max(fitting, key=len), CUT_PROMPT)
        else:
            assert outcome == LONG_PROMPT
        assert len(text) >= len(longest_before)
        longest_before = text


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_response_is_cut_between_characters_at_every_limit(kind: str) -> None:
    """A response that ends with half of a character teaches the model to write such."""
    t = TEMPLATES[kind]
    text = f"你 {FAMILY}\ufffdé{FAMILY}!"  # with the character that stands for a half in decoded text
    starts = ["".join(regex.findall(r"\X", text)[:i]) for i in range(1, 8)]
    whole = len(t.response_ids(text))
    for limit in range(1, whole + 1):
        _, kept, outcome = encode(t, Limits(99, limit, response_truncation="keep_start"), "q", text)
        fitting = [start for start in starts if len(t.response_ids(start)) <= limit]
        if limit == whole:
            assert (kept, outcome) == (text, 0)
        else:
            assert (kept, outcome) == ((max(fitting, key=len), CUT_RESPONSE) if fitting else ("", LONG_RESPONSE))


def test_a_character_that_is_too_long_is_cut_between_code_points() -> None:
    t = TEMPLATES["bytes"]
    fixed = len(t.prompt_ids(ask("")))
    assert encode(t, Limits(fixed + 5, 99), FAMILY) == ("👧", "So.", CUT_PROMPT)
    assert encode(t, Limits(fixed + 3, 99), FAMILY)[2] == LONG_PROMPT
    assert whole_characters(t, t.response_ids(FAMILY, end=False), 9) == 8  # a space, a woman and a joiner


@pytest.mark.parametrize("kind", ["bytes", "slow"])
def test_what_is_cut_away_has_the_tokens_that_were_asked_for(kind: str) -> None:
    tokenizer: Any = TEMPLATES[kind].tokenizer
    assert without_tokens(tokenizer, "abcdef", 2, keep_end=True) == "cdef"
    assert without_tokens(tokenizer, "abcdef", 2, keep_end=False) == "abcd"
    assert without_tokens(tokenizer, "a你b", 2, keep_end=True) == "b"
    assert without_tokens(tokenizer, "a你b", 2, keep_end=False) == "a"
    assert without_tokens(tokenizer, "ab", 2, keep_end=True) == without_tokens(tokenizer, "", 1, keep_end=True) == ""
