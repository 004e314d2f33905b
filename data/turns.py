"""Columns → turns: a prompt as text, transcript or list of messages, with what comes before it; and a response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.example import RowError, answer_of, ask, check_text, leading
from data.messages import check_learned, messages, with_tools
from rlhf.template import Message

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
SPEAKER_ON_A_LINE = re.compile(r"(?:^|\s)(Human|Assistant):(?=\s|$) ?")


def transcript(text: str, *, answered: bool = False) -> list[Message]:
    """`"Human: hi\\n\\nAssistant: hello"` as messages; turns of one speaker in a row are joined. With `answered` it is
    a whole conversation, else one that ends with "Assistant:" or with a question."""
    body = text.strip()
    marks = _marks(body, answered)
    if not marks or marks[0].start() != 0:
        raise RowError("a transcript must begin with 'Human:'")
    turns: list[Message] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        role = "user" if mark.group(1) == "Human" else "assistant"
        content = body[mark.end() : following.start() if following else len(body)].strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        else:
            turns.append({"role": role, "content": content})
    return turns


def _marks(body: str, answered: bool) -> list[re.Match[str]]:
    """Where turns begin: after a blank line. Where none does, `" Human: hi Assistant:"` has them after any blank, if
    the speakers alternate and the assistant is the last one; of a prompt, with nothing said yet."""
    marks = list(SPEAKER.finditer(body))
    if len(marks) == 1:
        close = list(SPEAKER_ON_A_LINE.finditer(body))
        speakers = [mark.group(1) for mark in close]
        alternate = len(speakers) % 2 == 0 and speakers == ["Human", "Assistant"] * (len(speakers) // 2)
        if alternate and (answered or close[-1].end() == len(body)):
            return close
    return marks


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def as_prompt(
    value: Any,
    name: str = "prompt",
    *,
    system: Any = None,
    history: Any = None,
    extra: Any = None,
    tools: Any = None,
) -> tuple[Message, ...]:
    """A prompt column: a question, a transcript that ends with "Assistant:", or messages. `extra` is text that belongs
    to a question (the input of an instruction), `history` what was said before, as pairs of question and answer,
    `tools` those that the assistant may call."""
    extra = "" if extra == value else optional_text(extra, "input")
    if isinstance(value, (list, tuple, Mapping)):
        turns = messages(listed(value), name)
    elif is_transcript(value):
        turns = transcript(value)
        if turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]
    else:
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"{name} is empty" if value is None or isinstance(value, str) else f"{name} is not text")
        turns = list(ask(f"{value}\n\n{extra}" if extra else value))
        extra = ""
    if extra:
        raise RowError(f"input cannot be added to {name}, which is a conversation")
    if not turns:
        raise RowError(f"{name} is empty")
    first = leading(turns)
    turns = [*first, *earlier_turns(history), *turns[len(first) :]]
    return tuple(with_tools(with_system(turns, system), tools))


def with_system(turns: Sequence[Message], system: Any) -> list[Message]:
    """Turns after the text of a system column; turns that have a system message of their own keep it."""
    text = optional_text(system, "system")
    if text and not leading(turns):
        return [{"role": "system", "content": text}, *turns]
    return list(turns)


def earlier_turns(history: Any) -> list[Message]:
    """A history column, `[[question, answer], …]` or messages, as turns."""
    if history is None or history == "":
        return []
    if not isinstance(history, (list, tuple)):
        raise RowError("history is not a list of [question, answer]")
    if any(isinstance(item, Mapping) for item in history):
        return messages(history, "history")
    turns: list[Message] = []
    for number, item in enumerate(history):
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise RowError(f"history ({number + 1}) is not [question, answer]")
        for role, text in zip(("user", "assistant"), item, strict=True):
            check_text(text, f"history ({number + 1})")
            turns.append({"role": role, "content": text})
    return turns


def optional_text(value: Any, name: str) -> str:
    """The text of a column that may be empty; "" if it is blank or missing."""
    if value is None:
        return ""
    check_text(value, name)
    return value if value.strip() else ""


def listed(value: Any) -> Any:
    """One message as a list of one."""
    return [value] if isinstance(value, Mapping) else value


def as_response(value: Any, prompt: Sequence[Message], name: str) -> str:
    """A response column: text, or messages of which the last is the assistant's and the others are the prompt. Raises
    Unlearned when the turn must not be learned."""
    if isinstance(value, (list, tuple, Mapping)):
        turns = answered(listed(value), name)
        before = spoken(turns[:-1])
        if before and before[0]["role"] == "assistant":
            raise RowError(f"{name} has several turns after the prompt; put all but the last into the prompt")
        if before and before != spoken(prompt):
            raise RowError(f"{name} does not continue the prompt: its earlier turns differ from it")
        return answer_of(turns[-1])
    check_text(value, name)
    if is_transcript(value):  # the whole conversation, its prompt included
        turns = transcript(value, answered=True)
        if turns[:-1] == spoken(prompt) and turns[-1]["role"] == "assistant":
            return turns[-1]["content"]
    return value


def spoken(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns without what is set before they begin: the turns of system and developer, and the tools."""
    return [{k: v for k, v in m.items() if k != "tools"} for m in turns[len(leading(turns)) :]]


def answered(value: Any, name: str) -> list[Message]:
    """A conversation, a transcript or messages, that ends with an assistant turn to learn."""
    turns = transcript(value, answered=True) if isinstance(value, str) else messages(value, name)
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError(f"{name} does not end with an assistant turn")
    if not isinstance(value, str):
        check_learned(value[-1])
    return turns


def implicit_prompt(chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], str, str]:
    """Two conversations that differ in their last assistant turn, as prompt and two responses."""
    both = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            check_text(value, name)
        if isinstance(value, str) and not is_transcript(value):
            raise RowError(
                f"{name} is not a transcript (Human: … Assistant: …) and there is no prompt column; "
                f"put what chosen and rejected begin with in a column 'prompt'"
            )
        both.append(answered(listed(value), name))
    if both[0][:-1] != both[1][:-1]:
        raise RowError("chosen and rejected differ before their last assistant turn, so they have no common prompt")
    return tuple(both[0][:-1]), answer_of(both[0][-1]), answer_of(both[1][-1])
