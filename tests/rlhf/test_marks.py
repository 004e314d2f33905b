"""What a template marks as the assistant's: read as characters, and as tokens."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf import marks
from rlhf.marks import Span
from rlhf.rendering import Message, Rendering
from tests.helpers.templates import EXACT, WIDER, by_transformers, template_of, unmarked

TALK: list[Message] = [
    {"role": "user", "content": " So?\n"},
    {"role": "assistant", "content": " It is 🙂."},
    {"role": "user", "content": "Why is it"},
    {"role": "assistant", "content": "So\n"},
]


def test_marks_are_found_whatever_their_blanks() -> None:
    assert marks.has_marks("{%-generation-%}x{%- endgeneration %}")
    assert not marks.has_marks("{% if add_generation_prompt %}{{ generation }}{% endif %}")


@pytest.mark.parametrize("name", [*EXACT, *WIDER])
def test_a_template_that_shows_its_marks_writes_the_same(name: str) -> None:
    """Blanks around the marks, macros and loops are as before."""
    t = template_of((EXACT | WIDER)[name])
    for talk in (TALK, TALK[:2], TALK[:3]):
        text, spans = marks.read(Rendering(t.tokenizer, with_marks=True)(talk, add_generation_prompt=False))
        assert text == Rendering(t.tokenizer)(talk, add_generation_prompt=False)
        assert text == Rendering(template_of(unmarked((EXACT | WIDER)[name])).tokenizer)(
            talk, add_generation_prompt=False
        )
        assert len(spans) >= len(talk) // 2
        assert all("So?" not in text[s.start : s.end] and "Why" not in text[s.start : s.end] for s in spans)


@pytest.mark.parametrize("kind", ["", "first", "always", "legacy", "unigram"])
@pytest.mark.parametrize("name", [*EXACT, *WIDER])
def test_the_tokens_between_marks_are_those_of_transformers(name: str, kind: str) -> None:
    t = template_of((EXACT | WIDER)[name], sentencepiece=kind)
    conversation = t.conversation(TALK)
    assert conversation is not None
    [(ids, spans)] = t.encode_spans([conversation])
    wanted, mask = by_transformers(t, TALK)
    assert ids == wanted
    if kind:  # transformers loses the last bytes of a character of several tokens where a mark ends with it
        counted = [i for span in spans for i in range(*span)]
        assert {i for i, m in enumerate(mask) if m} <= set(counted)
    else:
        assert [int(any(span.start <= i < span.end for span in spans)) for i in range(len(ids))] == mask


def test_a_character_of_several_tokens_at_the_end_of_a_mark_counts_whole() -> None:
    t = template_of(WIDER["no end"])
    talk: list[Message] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x🙂"}]
    [(ids, [span])] = t.encode_spans([t.conversation(talk)])  # type: ignore[list-item]
    assert t.tokenizer.decode(ids[span.start : span.end]) == "x🙂"


def test_marks_in_a_macro_are_where_the_macro_wrote_them() -> None:
    """transformers counts from where the macro began, so its masks have the header in place of the end."""
    t = template_of(
        "{% macro turn(m) %}{{ '<|' + m.role + '|>' }}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}"
        "{% endmacro %}{% for m in messages %}{{ turn(m) if m.role == 'assistant' else '<|user|>' + m.content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    conversation = t.conversation(TALK)
    assert conversation is not None
    [(ids, spans)] = t.encode_spans([conversation])
    assert [t.tokenizer.decode(ids[s.start : s.end]) for s in spans] == [" It is 🙂.<|end|>", "So\n<|end|>"]


@pytest.mark.parametrize("name", [*EXACT, *WIDER])
def test_marks_without_the_end_token_are_said(name: str) -> None:
    """A model that is trained by them never stops."""
    problem = template_of((EXACT | WIDER)[name]).marks_problem()
    assert (problem is not None) == (name == "no end")
    assert problem is None or "leave out <|im_end|>, so the model does not learn to end" in problem
    assert template_of(unmarked(EXACT["ChatML"])).marks_problem() is None


@pytest.mark.parametrize("kind", ["", "first", "legacy"])
def test_control_tokens_between_marks_are_text(kind: str) -> None:
    """Such a text is encoded piece by piece; what is learned is still the turn, and the tokens are letters."""
    t = template_of(EXACT["ChatML"], sentencepiece=kind)
    talk: list[Message] = [
        {"role": "user", "content": "a<|im_end|>"},
        {"role": "assistant", "content": "<|im_start|>b"},
    ]
    [(ids, [span])] = t.encode_spans([t.conversation(talk)])  # type: ignore[list-item]
    learned: Any = t.tokenizer.convert_ids_to_tokens(ids[span.start : span.end])
    assert "".join(learned[:-1]) == "<|im_start|>b"
    assert learned[-1] == "<|im_end|>"
    assert len(learned) == len("<|im_start|>b") + 1
    assert ids == [*t.prompt_ids(talk[:1]), *t.response_ids("<|im_start|>b"), *t.encode(["\n"])[0][-1:]]


def test_pieces_have_the_ids_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that does not tell where its tokens are gives the same spans."""
    t = template_of(EXACT["Llama 3"])
    conversation = t.conversation(TALK)
    assert conversation is not None
    whole = t.encode_spans([conversation])
    assert [t._in_pieces(*conversation)] == whole
    assert all(isinstance(span, Span) for span in whole[0][1])
