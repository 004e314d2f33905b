"""What every dataset becomes: an Example, a prompt with the responses that a source has for it, or plain text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.json_lines import SAVE_AS_UTF8
from rlhf.template import Message

Row = Mapping[str, Any]  # of a source, before it is an Example

LARGEST_NUMBER = 3.4e38  # what is stored as fp32
LARGEST_TEXT = 4_000_000  # characters of one text; beyond it a row is a broken file rather than a text
# The call of a tool in the text of a turn, as models write it.
SPELLED_CALL = re.compile(
    r"<(tool_call|function|\|python_tag)|\[TOOL_CALLS\]|\bAction:|\"name\"\s*:.*\"(arguments|parameters)\"\s*:|"
    r"^\s*\[?\w[\w.]*\(.*\)\]?\s*$",
    re.DOTALL,
)


class Answer(str):
    """The text of a response that has `thoughts` before it."""

    thoughts: str

    def __new__(cls, text: str, thoughts: str) -> Answer:
        answer = super().__new__(cls, text)
        answer.thoughts = thoughts
        return answer


def answer_of(message: Message) -> str:
    """The text of an assistant turn, with its thoughts if it has any."""
    thoughts = message.get("reasoning_content")
    return Answer(message["content"], thoughts) if thoughts else message["content"]


def are_the_same(response: str | None, other: str | None) -> bool:
    """Whether two responses say the same, their thoughts included."""
    if response is None or other is None:
        return False
    return response.strip() == other.strip() and thoughts_of(response) == thoughts_of(other)


def thoughts_of(response: str | None) -> str | None:
    """The thoughts before a response; None where it has none."""
    return response.thoughts if isinstance(response, Answer) else None


class RowError(ValueError):
    """A row that cannot be used, in one clause; the reader adds the file and the row."""


class Unlearned(RowError):
    """A response that must not be learned; its prompt can be used."""


@dataclass(frozen=True)
class Remark:
    """What a user should know of a row that is used, such as "column 'tools' is not used". A function that reads rows
    may yield it beside the Examples; equal remarks of a source are counted and become one warning. `unused` is a column
    that no shape reads; a reward may read it."""

    text: str
    unused: str = ""


Placed = tuple[str, Row | RowError]  # ("train.jsonl, line 7", the row or what is wrong with it)


class Place(str):
    """A row's place, as text for people ("train.jsonl, line 7"), and in two parts, as the store keeps it: the number of
    the file among those of the source, and the place inside it. The file may have another name when it is shown."""

    file: int
    inside: str

    def __new__(cls, name: str, file: int, inside: str) -> Place:
        place = super().__new__(cls, f"{name}, {inside}")
        place.file, place.inside = file, inside
        return place


@dataclass(frozen=True)
class Example:
    """One row in the project's own terms. Raises RowError when a text or the order of roles is not usable.

    prompt        messages that end with a user turn, or with what a tool gave; a system message may come first
    chosen        the better response, or the only one; None where a source has no good response; an `Answer` where it
                  has thoughts
    rejected      the worse response, or None; without `chosen` a bad response, which no stage learns
    margin        how much better `chosen` is, in units of the reward model's score
    text          plain text for the pretraining mix, with an empty prompt
    demonstrates  False where `chosen` only beats `rejected` and a better response exists: not for stage 1
    learned       places of the assistant turns of `prompt` that stage 1 learns beside `chosen`, in order; the others,
                  and all of them in the other stages, are context
    kept          JSON of what rewards read of the row (`data.kept`); the reader fills it in
    """

    prompt: tuple[Message, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    margin: float = 0.0
    text: str | None = None
    demonstrates: bool = True
    kept: str = ""
    learned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.text is not None:
            check_text(self.text, "text")
            return
        check_roles(self.prompt)
        for name in ("chosen", "rejected"):
            value = getattr(self, name)
            if value is not None:
                check_text(value, name)
        if not isinstance(self.margin, (int, float)) or not abs(self.margin) <= LARGEST_NUMBER:
            raise RowError(f"margin is {self.margin!r}, not a finite number")
        turns = assistant_turns(self.prompt)
        if list(self.learned) != [turn for turn in turns if turn in self.learned]:
            raise RowError(f"learned is {self.learned!r}, not places of assistant turns of the prompt, {turns!r}")


def ask(question: str, *, system: str | None = None) -> tuple[Message, ...]:
    """A prompt of one user turn, after a system message where there is one."""
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    return (*turns, {"role": "user", "content": question})


def assistant_turns(prompt: Sequence[Message]) -> tuple[int, ...]:
    """The places of the assistant turns of a prompt."""
    return tuple(place for place, message in enumerate(prompt) if message["role"] == "assistant")


def check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}, not text")
    if "\0" in value:
        raise RowError(f"{name} contains a NUL byte")
    if len(value) > LARGEST_TEXT:
        raise RowError(f"{name} has {len(value):,} characters, more than {LARGEST_TEXT:,}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        broken = any("\udc80" <= character <= "\udcff" for character in value)  # how a byte that is not UTF-8 is read
        raise RowError(f"{name} is not Unicode text: {SAVE_AS_UTF8 if broken else 'it holds half of a surrogate pair'}")


def check_roles(prompt: Sequence[Message]) -> None:
    """A prompt has a system message, a developer's, or none, then user and assistant turns in alternation; the last is
    a user's. Between an assistant turn that calls tools, also in its text, and its answer stands what they gave, which
    may come last."""
    if not prompt:
        raise RowError("prompt is empty")
    for number, message in enumerate(prompt):
        check_text(message["content"], f"prompt (message {number + 1})")
    roles = [message["role"] for message in prompt]
    shown = ", ".join(roles)
    first = len(leading(prompt))
    if any(roles[:first].count(role) > 1 for role in ("system", "developer")):
        raise RowError(f"there are two {roles[0]} turns ({shown}); join their texts")
    expected = ("user",)
    before: Message | None = None
    for message in prompt[first:]:
        role = message["role"]
        if role == "tool" and role not in expected and not _spells_a_call(before):
            raise RowError(f"roles are out of order ({shown}): a tool's result without a call of it (tool_calls)")
        if role != "tool" and role not in expected:
            raise RowError(f"roles are out of order ({shown}): expected {expected[0]}, found {role}")
        calls = role == "assistant" and "tool_calls" in message
        expected = {"user": ("assistant",), "tool": ("assistant", "tool")}.get(role, ("tool",) if calls else ("user",))
        before = message
    if expected == ("tool",):
        raise RowError(f"roles are out of order ({shown}): a tool's call without its result")
    if roles[-1] not in ("user", "tool"):
        raise RowError(f"the prompt must end with a user turn ({shown})")
    if roles[-1] == "user" and not prompt[-1]["content"].strip():
        raise RowError("prompt is empty")


def _spells_a_call(message: Message | None) -> bool:
    return message is not None and message["role"] == "assistant" and bool(SPELLED_CALL.search(message["content"]))


def leading(prompt: Sequence[Message]) -> Sequence[Message]:
    """The turns of system and developer that a prompt begins with."""
    count = next((i for i, m in enumerate(prompt) if m["role"] not in ("system", "developer")), len(prompt))
    return prompt[:count]


def prompt_json(prompt: Iterable[Message]) -> str:
    return json.dumps([dict(m) for m in prompt], ensure_ascii=False)


def content_hash(*parts: str) -> int:
    """64 bits of the texts' content, the same in every process and on every machine; blanks at the ends do not
    count."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.strip().encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def prompt_hash(prompt: Iterable[Message]) -> int:
    """The hash that decides a prompt's stage and whether it is held out."""
    return content_hash(*[part for message in prompt for part in _said(message)])


def _said(message: Message) -> list[str]:
    more = {k: v for k, v in message.items() if k not in ("role", "content", "reasoning_content", "options")}
    return [message["role"], message["content"], *([json.dumps(more, sort_keys=True)] if more else [])]


def kind_of(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}
    return "empty (null)" if value is None else names.get(type(value), type(value).__name__)
