"""Conversations of other tools in the form that the shapes read: roles in capitals, contents in parts, turns that are
{human, assistant} or {input, output}, and texts in alternation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.example import RowError
from data.judgements import RANK_FIELDS, SCORE_FIELDS
from data.messages import ROLES, SPEAKERS
from data.unused import MEDIA_FIELDS, empty
from data.written import read_written

ASKS = ("human", "user", "question", "input", "prompt", "query")
ANSWERS = ("assistant", "gpt", "bot", "answer", "output", "response", "completion")
SPEAK = {*ROLES, *SPEAKERS}
TEXTS = ("text", "input_text", "output_text")  # types of parts
BEGINS, ONES = ("messages", "rejected_messages"), ("prompt", "chosen", "rejected", "first", "second")
TALKS = (*BEGINS, *ONES, "answers", "history", "system")


def native(value: Any, name: str) -> Any:
    """A value of the column `name` with its messages as ours; the value itself where there is nothing to change.
    Raises RowError for what a conversation of text cannot hold."""
    if name == "system":
        return _system(value)
    if isinstance(value, Mapping):
        if isinstance(value.get("messages"), (list, tuple)) and not value.get("tools"):
            return native(value["messages"], name)
        if _speaks(value) and all(isinstance(texts, (list, tuple)) for texts in value.values()):
            value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
            return native(value, name)  # a list of mappings as datasets gives it
        if name == "answers" and value.keys() & {*SCORE_FIELDS, *RANK_FIELDS}:
            return [dict(zip(value, item, strict=False)) for item in zip(*value.values(), strict=False)]
        if not _speaks(value) and name in ONES:
            raise RowError(f"{name} is a mapping without a role, neither text nor messages")
        return _message(value, name) if _speaks(value) else value
    if name in BEGINS and isinstance(value, (list, tuple)):
        value = _turns(value, name)
    if not isinstance(value, (list, tuple)) or not any(isinstance(item, Mapping) for item in value):
        return value
    found: list[Any] = []
    for number, item in enumerate(value):
        where = f"{name} (message {number + 1})"
        if not isinstance(item, Mapping):
            found.append(item)
        elif _speaks(item):
            found.append(_message(item, where))
        elif name != "answers" and (asked := _first(item, ASKS)) and (answer := _first(item, ANSWERS)):
            system = [{"role": "system", "content": item["system"]}] if item.get("system") and not number else []
            more = {field: v for field, v in item.items() if field not in (asked, answer, "system")}
            if "output_with_loss" in more:  # XTuner's
                more["loss"] = more.pop("output_with_loss")
            reply = {**more, "role": "assistant", "content": item[answer]}
            found += [*system, {"role": "user", "content": item[asked]}, reply]
        elif "completion" in item and isinstance(item["completion"], (list, tuple)):  # an answer with its rank
            found.append({**item, "completion": native(item["completion"], where)})
        else:
            found.append(item)
    return found


def _turns(items: Sequence[Any], name: str) -> Sequence[Any]:
    """Turns that are texts: messages written as JSON, those of user and assistant in alternation, or pairs of them."""
    if all(isinstance(item, (list, tuple)) and list(map(type, item)) == [str, str] for item in items):
        if all(role.lower() in SPEAK for role, _ in items):
            return [{"role": role.lower(), "content": text} for role, text in items]
        items = [text for pair in items for text in pair]
    if not all(isinstance(item, str) for item in items):
        return items
    written = [read_written(item, "prompt") for item in items]
    if items and all(isinstance(message, Mapping) for message in written):
        return written
    spoken = [text.partition(":") for text in items]
    if all(colon and role.strip().lower() in SPEAK for role, colon, _ in spoken):
        return [{"role": role.strip().lower(), "content": text.strip()} for role, _, text in spoken]
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(items)]


def _system(value: Any) -> Any:
    """The text of a system column that holds parts, or a message with its text or its parts."""
    if isinstance(value, Mapping):
        value = next((value[field] for field in ("content", "parts", "text") if field in value), value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(p, Mapping) and _is_part(p) for p in value):
        return _text(value, "system")
    return value


def _speaks(item: Mapping[str, Any]) -> bool:
    return "role" in item or "from" in item


def _first(item: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in item), None)


def _message(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if "parts" in item and "content" not in item:  # as Gemini writes contents
        item = {**{k: v for k, v in item.items() if k != "parts"}, "content": item["parts"]}
    elif "text" in item and not {"content", "value"} & item.keys():
        item = {**{k: v for k, v in item.items() if k != "text"}, "content": item["text"]}
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if len(item) == 2 and isinstance(role, str) and role.islower() and isinstance(content, str):
        return item  # as most are
    changed: dict[str, Any] = {}
    for field in MEDIA_FIELDS:
        if not empty(item.get(field)):
            raise RowError(f"{where} has a picture, film or sound (field '{field}'), which no stage reads")
    if isinstance(item.get("label"), str) and ":" in item["label"] and "from" in item:
        raise RowError(
            f"{where} has attributes ({item['label'][:40]!r}) that an answer is conditioned on (SteerLM), and no stage "
            "here does; remove the labels of the turns, and put the attribute that counts in a column 'score'"
        )
    parts = item.get("train_detail")
    if isinstance(parts, (list, tuple)) and any(isinstance(p, Mapping) and p.get("train") is False for p in parts):
        changed["train"] = False  # a part of it must not be learned
    for ours, theirs in (("role", "from"), ("content", "value")):  # a table has both where its rows are of two kinds
        if ours in item and item[ours] is None and item.get(theirs) is not None:
            changed[ours] = item[theirs]
    item = {**item, **changed} if changed else item
    for key in ("role", "from"):
        role = item.get(key)
        if isinstance(role, str) and not role.islower():
            changed[key] = role.strip().lower()
    for key in ("content", "value"):
        if isinstance(item.get(key), (list, tuple)) and all(map(_is_part, item[key])):
            changed[key] = _text(item[key], where)
    return {**item, **changed} if changed else item


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and ("type" in part or "text" in part))


def _text(parts: Iterable[Any], where: str) -> str:
    """The text of a content in parts, [{type: text, text}, …]."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in TEXTS:
            texts.append(part["text"])
        else:
            what = part.get("type") if isinstance(part, Mapping) else None
            raise RowError(f"{where} has a part of the type {str(what)[:20]!r}, but only text is read")
    return "".join(texts)
