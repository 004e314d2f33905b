"""What a row says that no stage reads: columns, fields of messages, pictures, and marks in its texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data.example import Remark, Row, RowError
from data.messages import read_tools
from rlhf.rendering import THOUGHTS

FIELDS = (
    *("tool_call_id", "name"),
    *("train_detail", "label", "channel", "mask", "masked", "refusal", "score", "rating", "feedback"),
)  # of messages, beside role and content
MEDIA_FIELDS = ("images", "image", "videos", "video", "audios", "audio", "image_url")
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
# What chat templates write around turns. A text that holds it was rendered before.
MARKS = (
    *("<|im_start|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>", "[INST]", "<|user|>", "<|assistant|>"),
    *("<|User|>", "<|Assistant|>", "<extra_id_1>", "<|start|>", "<|begin_of_text|>", "### Instruction:", "### Human:"),
)


def unused(row: Row, values: Mapping[str, Any], left: Mapping[str, str]) -> Iterator[Remark]:
    """What a row says in columns and fields that are not read. `values` are those that are, by our names; `left` are
    columns that say something, each with the reason why it is not read, or "". Raises RowError for a picture."""
    turns = [
        m for value in values.values() if isinstance(value, (list, tuple, Mapping)) for m in listed_messages(value)
    ]
    used = [value for value in values.values() if isinstance(value, (str, list, tuple, Mapping))]
    for column, why in left.items():
        value = row[column]
        if not empty(value) and value not in used and not any(value == m.get("content") for m in turns):
            yield Remark(f"column '{column}' is not used{why and f': {why}'}", unused=column)
    if not empty(values.get("tools")) and read_tools(values["tools"]) is None:
        yield Remark("column 'tools' is not used: it is not a list of functions", unused="tools")
    more = [m for m in turns if len(m) > 2 and m.get("role", m.get("from")) not in (None, "tool", "function")]
    for field in FIELDS if more else ():
        if any(not empty(m.get(field)) for m in more):
            yield Remark(f"field '{field}' of messages is not used")
    for field in THOUGHTS if more else ():  # text, of the assistant, is read
        if any(not empty(m.get(field)) and not isinstance(m[field], str) for m in more):
            yield Remark(f"field '{field}' of messages is not used: it is not text")
    if any(isinstance(m.get(n), float) and m[n] not in (0, 1) for m in more for n in ("weight", "loss", "loss_scale")):
        yield Remark("weight of a turn other than 0 and 1 counts as 1")
    system = values.get("system")
    if system and any(m.get("role", m.get("from")) in ("system", "developer") for m in turns) and not any(
        system == m.get("content", m.get("value")) for m in turns
    ):  # fmt: skip
        yield Remark("column 'system' is not used: the messages have a system turn of their own")
    if _is_transcript(values.get("text")):
        yield Remark("text that is a conversation is plain text here; columns such as prompt and chosen make it one")
    texts = [
        *(v for v in values.values() if isinstance(v, str)),
        *(str(m.get("content", m.get("value"))) for m in turns),
    ]
    yield from _marks(texts)


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and text.lstrip().startswith(("User:", "Human:"))


def _marks(texts: Iterable[str]) -> Iterator[Remark]:
    texts = [text for text in texts if "<" in text or "[INST]" in text or "### " in text]  # most have none of all
    for mark in PLACEHOLDERS:
        if any(mark in text and mark.replace("<", "</") not in text for text in texts):
            yield Remark(f"text with the placeholder {mark}, of which no stage sees what it stands for")
    for mark in MARKS:
        if any(mark in text for text in texts):
            yield Remark(
                f"text with a chat template's mark {mark}, which is encoded as text; the template of the model writes "
                "its own marks, so give the conversation as messages [{role, content}]"
            )
            return


def check_pictures(row: Row, columns: Iterable[str]) -> None:
    """Raises RowError where a column for pictures, films or sound holds any."""
    for column in columns:
        if not empty(row.get(column)):
            raise RowError(f"has a picture, film or sound (column '{column}'), which no stage reads")


def listed_messages(value: Any) -> list[Mapping[str, Any]]:
    return [value] if isinstance(value, Mapping) else [item for item in value if isinstance(item, Mapping)]


def empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)
