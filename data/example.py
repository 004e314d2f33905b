"""What every dataset becomes: an Example, a prompt with the responses that a source has for it, or plain text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.json_lines import SAVE_AS_UTF8
from rlhf.template import Message

Row = Mapping[str, Any]  # of a source, before it is an Example

LARGEST_NUMBER = 3.4e38  # what is stored as fp32
LARGEST_TEXT = 4_000_000  # characters of one text; beyond it a row is a broken file rather than a text
SPEAKERS = {"human": "user", "gpt": "assistant", "prompter": "user", "bot": "assistant", "model": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")
CALLS = ("tool_calls", "function_call")  # fields of a turn that ends in the call of a tool
LEARN = ("weight", "train", "training", "loss")  # fields of a turn that say whether it is to be learned


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

    prompt        messages that end with a user turn; a system message may come first
    chosen        the better response, or the only one; None where a source has no good response
    rejected      the worse response, or None; without `chosen` a bad response, which no stage learns
    margin        how much better `chosen` is, in units of the reward model's score
    text          plain text for the pretraining mix, with an empty prompt
    demonstrates  False where `chosen` only beats `rejected` and a better response exists: not for stage 1
    kept          JSON of what rewards read of the row (`data.kept`); the reader fills it in
    """

    prompt: tuple[Message, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    margin: float = 0.0
    text: str | None = None
    demonstrates: bool = True
    kept: str = ""

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


def ask(question: str, *, system: str | None = None) -> tuple[Message, ...]:
    """A prompt of one user turn, after a system message where there is one."""
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    return (*turns, {"role": "user", "content": question})


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
    """A prompt has an optional system message, then user and assistant turns in alternation; the last is a user's."""
    if not prompt:
        raise RowError("prompt is empty")
    for number, message in enumerate(prompt):
        check_text(message["content"], f"prompt (message {number + 1})")
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[0] == "system" else roles
    for number, role in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            raise RowError(f"roles are out of order ({', '.join(roles)}): expected {expected}, found {role}")
    if not turns or turns[-1] != "user":
        raise RowError(f"the prompt must end with a user turn ({', '.join(roles)})")
    if not prompt[-1]["content"].strip():
        raise RowError("prompt is empty")


def messages(value: Any, name: str) -> list[Message]:
    """A list of {role, content}, or {from, value} as in ShareGPT, with the roles' names changed to ours."""
    if not isinstance(value, (list, tuple)):
        raise RowError(f"{name} is {kind_of(value)}, not a list of messages")
    turns: list[Message] = []
    for number, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RowError(f"{name} (message {number + 1}) is {kind_of(item)}, not a {{role, content}} mapping")
        role: Any = item.get("role", item.get("from"))
        content: Any = item.get("content", item.get("value"))
        role = SPEAKERS.get(str(role), role)
        if role not in ("system", "user", "assistant"):
            tools = "; calls and results of tools are not read" if role in TOOL_ROLES else ""
            raise RowError(f"{name} (message {number + 1}) has the role {role!r}, not system, user or assistant{tools}")
        if content is None and calls_a_tool(item):
            if number + 1 < len(value):
                raise RowError(f"{name} (message {number + 1}) has a tool call and no text, which no prompt can hold")
            content = ""
        check_text(content, f"{name} (message {number + 1})")
        turns.append({"role": role, "content": str(content)})
    return turns


def calls_a_tool(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in CALLS)


def check_learned(message: Mapping[str, Any]) -> None:
    """Raises Unlearned for an assistant turn that is no answer to learn: a call of a tool, or a turn that says so."""
    if calls_a_tool(message):
        raise Unlearned("turn with a tool call (tool_calls) is not learned")
    for name in LEARN:
        value = message.get(name)
        if value in (False, 0) or (isinstance(value, str) and value.strip().lower() in ("false", "0", "0.0")):
            raise Unlearned(f"turn with {name}={value} is not learned")


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
    return content_hash(*[part for message in prompt for part in (message["role"], message["content"])])


def kind_of(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}
    return "empty (null)" if value is None else names.get(type(value), type(value).__name__)
