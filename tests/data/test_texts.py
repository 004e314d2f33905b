"""Plain text as rows of the pretraining mix."""

from __future__ import annotations

from data.texts import TextEncoder
from rlhf.template import Template


def test_plain_text_is_joined_by_eos_into_full_rows(template: Template) -> None:
    rows = TextEncoder(template.tokenizer, 4)({"text": ["abc", "de", "fgh"]})["input_ids"]
    said = [template.tokenizer.decode(row) for row in rows]
    assert said == ["abc</s>", "de</s>f"]  # "gh</s>" is too short for a row
