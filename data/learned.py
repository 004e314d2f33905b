"""Which tokens of a conversation are learned: each assistant turn that counts, as it is when the model says it.

A turn is learned where its own row, the prompt before it and its response, is the beginning of the whole conversation's
row. A template may write an earlier turn otherwise than the last one (without its thoughts, with another end), and a
tokenizer may join tokens across an edge: such a turn gets a row of its own, so the model never learns to say something
behind ids that it will not be given.

What of a turn counts, the template's `{% generation %}` marks say; without marks it is the response and its end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from data.example import answer_of, thoughts_of
from rlhf.marks import Span
from rlhf.rendering import thinking
from rlhf.template import Message, Template


@dataclass(frozen=True)
class Talk:
    """A prompt as it is encoded, its response, and the assistant turns of the prompt that are learned as well. A
    response that was cut is given by its ids; its text (an `Answer` where it has thoughts) is what they mean."""

    messages: Sequence[Message]
    prompt_ids: list[int]
    text: str
    response_ids: list[int]
    earlier: tuple[int, ...] = ()


@dataclass
class LearnedRow:
    """Ids with the spans of them that are learned, in order; `turns`: of how many turns these are."""

    ids: list[int]
    spans: list[Span]
    turns: int = 1


def learned_rows(template: Template, talks: Sequence[Talk]) -> list[list[LearnedRow]]:
    """Per conversation the row of its last turn, in which earlier turns are learned too, and rows of their own for
    those that are not a part of it."""
    turns = [_said(template, talk.messages[:turn], talk.messages[turn]) for talk in talks for turn in talk.earlier]
    prompts = template.encode([template.prompt_text(before) for before, _ in turns])
    texts = [template.response_text(t, thoughts_of(t) or "", thinks=template.thinks(before)) for before, t in turns]
    responses = template.encode(texts, responses=True)
    single = [
        Talk(before, prompt, text, [*response, template.end_token_id])
        for (before, text), prompt, response in zip(turns, prompts, responses, strict=True)
    ]
    rows = iter(_last_turns(template, [*single, *talks]))
    earlier = [[next(rows) for _ in talk.earlier] for talk in talks]
    return [_joined(next(rows), before) for before in earlier]


def _said(template: Template, before: Sequence[Message], turn: Message) -> tuple[Sequence[Message], str]:
    """What stands before a turn, as when it is said: a turn with thoughts in a conversation that leaves room for
    them; and its text."""
    text = answer_of(turn)
    return thinking(before) if thoughts_of(text) and template.writes_thoughts else before, text


def _last_turns(template: Template, talks: Sequence[Talk]) -> list[LearnedRow]:
    """The row of the last turn of each."""
    found = [
        LearnedRow(t.prompt_ids + t.response_ids, [Span(len(t.prompt_ids), len(t.prompt_ids) + len(t.response_ids))])
        for t in talks
    ]
    marked = [(i, whole) for i, talk in enumerate(talks) if (whole := _by_marks(template, talk))]
    for (i, _), (ids, spans) in zip(marked, template.encode_spans([whole for _, whole in marked]), strict=True):
        found[i] = LearnedRow(ids[: spans[-1].end], spans)
    return found


def _by_marks(template: Template, talk: Talk) -> tuple[str, list[Span]] | None:
    """The conversation as the template writes it, with the marks of its last turn: those that reach beyond the prompt
    of it. None where the template has no marks for the turn."""
    answer: Message = {"role": "assistant", "content": talk.text}
    if (thoughts := thoughts_of(talk.text)) and template.thinks(talk.messages):
        answer["reasoning_content"] = thoughts
    whole = template.conversation([*talk.messages, answer])
    if whole is None:
        return None
    text, spans = whole
    alike = zip(text, template.prompt_text(talk.messages), strict=False)
    asked = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], alike))
    own = [span for span in spans if span.end > asked]
    return (text, own) if own else None


def _joined(last: LearnedRow, earlier: Sequence[LearnedRow]) -> list[LearnedRow]:
    """The rows of a conversation's turns; a turn whose row begins another one is learned there."""
    rows = [last]
    for turn in reversed(earlier):
        row = next((row for row in rows if _begins(turn, turn.spans[0], row)), None)
        if row is None:
            rows.append(turn)
            continue
        row.spans[:0] = [span for span in turn.spans if _begins(turn, span, row)]
        row.turns += 1
    return rows


def _begins(turn: LearnedRow, span: Span, row: LearnedRow) -> bool:
    return row.ids[: span.end] == turn.ids[: span.end]
