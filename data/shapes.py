"""The shapes that rows come in, recognised by their columns: each is a function row → Iterable[Example]."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from data.example import Example, Row, RowError, ask, check_text, messages
from rlhf.errors import DataError, nearest
from rlhf.template import Message

Adapter = Callable[[Row], Iterable[Example]]
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Shape:
    """What a source's rows are, in words for the user, and the function that reads them. `prepare` runs before it if
    rows depend on each other; `mapped` is True if it follows the user's `columns`."""

    says: str
    adapt: Adapter
    prepare: Callable[[Iterable[tuple[str, Any]]], Iterator[tuple[str, Any]]] | None = None
    mapped: bool = False


# --- transcripts -----------------------------------------------------------------------------------------------------


def transcript(text: str) -> list[Message]:
    """`"Human: hi\\n\\nAssistant: hello"` as messages; turns of one speaker in a row are joined."""
    marks = list(SPEAKER.finditer(text.strip()))
    body = text.strip()
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


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def as_prompt(value: Any, name: str = "prompt", *, system: Any = None) -> tuple[Message, ...]:
    """A prompt column: a question, a transcript that ends with "Assistant:", or a list of messages."""
    if isinstance(value, (list, tuple)):
        turns = messages(value, name)
    elif is_transcript(value):
        turns = transcript(value)
        if turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]
    else:
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"{name} is empty" if value is None or isinstance(value, str) else f"{name} is not text")
        turns = list(ask(value))
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return tuple(turns)


def as_response(value: Any, prompt: Sequence[Message], name: str) -> str:
    """A response column: text, or messages of which the last is the assistant's and the others are the prompt."""
    if not isinstance(value, (list, tuple)):
        check_text(value, name)
        return value
    turns = messages(value, name)
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError(f"{name} does not end with an assistant turn")
    before = [m for m in turns[:-1] if m["role"] != "system"]
    if before and before != [m for m in prompt if m["role"] != "system"]:
        raise RowError(f"{name} does not continue the prompt: its earlier turns differ from it")
    return turns[-1]["content"]


def _answer(row: Row, prompt: Sequence[Message], name: str) -> str:
    text = as_response(row[name], prompt, name)
    # After "Assistant:" a transcript's answer begins with a space that is not part of it.
    return text.strip() if is_transcript(row["prompt"]) else text


# --- one function per shape ------------------------------------------------------------------------------------------


def pairs(row: Row) -> Iterator[Example]:
    """prompt, chosen, rejected; the prompt may be missing where chosen and rejected are whole conversations."""
    if row.get("prompt") is not None:
        prompt = as_prompt(row["prompt"], system=row.get("system"))
        chosen, rejected = (_answer(row, prompt, name) for name in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = implicit_prompt(row["chosen"], row["rejected"])
    yield Example(prompt, chosen, rejected, margin=number(row.get("margin"), "margin"))


def implicit_prompt(chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], str, str]:
    """Two conversations that differ in their last assistant turn, as prompt and two responses."""
    both = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(value, str) and not is_transcript(value):
            raise RowError(f"{name} is not a transcript (Human: … Assistant: …) and there is no prompt column")
        turns = transcript(value) if isinstance(value, str) else messages(value, name)
        if not turns or turns[-1]["role"] != "assistant":
            raise RowError(f"{name} does not end with an assistant turn")
        both.append(turns)
    if both[0][:-1] != both[1][:-1]:
        raise RowError("chosen and rejected differ before their last assistant turn, so they have no common prompt")
    return tuple(both[0][:-1]), both[0][-1]["content"], both[1][-1]["content"]


def demonstration(row: Row) -> Iterator[Example]:
    """prompt and chosen (or completion, response)."""
    prompt = as_prompt(row["prompt"], system=row.get("system"))
    yield Example(prompt, _answer(row, prompt, "chosen"))


def conversation(row: Row) -> Iterator[Example]:
    """messages: the last assistant turn is the response, all before it the prompt."""
    turns = messages(row["messages"], "messages")
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RowError("messages has no assistant turn")
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    yield Example(tuple(turns[:-1]), turns[-1]["content"])


def instruction(row: Row) -> Iterator[Example]:
    """instruction, input (may be empty), output."""
    task, extra = row["instruction"], row.get("input")
    if not isinstance(task, str):
        raise RowError("instruction is not text")
    question = f"{task}\n\n{extra}" if isinstance(extra, str) and extra.strip() else task
    yield Example(as_prompt(question, "instruction", system=row.get("system")), row["output"])


def ranked(row: Row) -> Iterator[Example]:
    """prompt and several answers: best first, or with scores (more is better) or ranks (less is better)."""
    prompt = as_prompt(row["prompt"], system=row.get("system"))
    answers = row["answers"]
    if not isinstance(answers, (list, tuple)) or not answers:
        raise RowError("answers is not a list of texts")
    texts = [as_response(a, prompt, f"answers ({i + 1})") for i, a in enumerate(answers)]
    scores = row.get("scores")
    if scores is None:
        ranks = row.get("ranks")
        scores = [-number(r, "ranks") for r in ranks] if ranks is not None else [-i for i in range(len(texts))]
    yield from ranked_pairs(prompt, texts, [number(s, "scores") for s in scores])


def ranked_pairs(prompt: tuple[Message, ...], texts: Sequence[str], scores: Sequence[float]) -> Iterator[Example]:
    """Every pair of answers with different scores; only the best answers are demonstrations."""
    if len(texts) != len(scores):
        raise RowError(f"there are {len(texts)} answers but {len(scores)} scores or ranks")
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    for better, worse in combinations(order, 2):
        if scores[better] > scores[worse]:
            best = scores[better] == scores[order[0]]
            yield Example(prompt, texts[better], texts[worse], demonstrates=best)


def prompt_only(row: Row) -> Iterator[Example]:
    yield Example(as_prompt(row["prompt"], system=row.get("system")))


def plain_text(row: Row) -> Iterator[Example]:
    """text, for the pretraining mix; blank rows give nothing."""
    if not isinstance(row["text"], str):
        raise RowError("text is not text")
    if row["text"].strip():
        yield Example(text=row["text"])


def number(value: Any, name: str) -> float:
    """A number that may be written as text, as in CSV; an empty value is 0."""
    if value is None or value == "":
        return 0.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RowError(f"{name} is {value!r}, not a number") from None


# --- recognition -----------------------------------------------------------------------------------------------------

# What a shape needs → its function and its name; the first whose columns are all there is taken.
SHAPES: tuple[tuple[tuple[str, ...], Adapter, str], ...] = (
    (("prompt", "answers"), ranked, "ranked answers, expanded to pairs"),
    (("chosen", "rejected"), pairs, "preference pairs"),
    (("prompt", "chosen"), demonstration, "prompts with a response"),
    (("messages",), conversation, "conversations, of which the last assistant turn is learned"),
    (("instruction", "output"), instruction, "instructions with an output"),
    (("prompt",), prompt_only, "prompts only"),
    (("text",), plain_text, "plain text"),
)
OPTIONAL = ("prompt", "input", "system", "margin", "scores", "ranks")
# Other names that columns commonly have; used where the first name is missing.
SYNONYMS = {
    "completion": "chosen",
    "response": "chosen",
    "responses": "answers",
    "completions": "answers",
    "conversations": "messages",
    "system_prompt": "system",
}
TARGETS = sorted({name for needed, _, _ in SHAPES for name in needed} | set(OPTIONAL))


def parse_columns(text: str) -> dict[str, str]:
    """`"prompt=question,chosen=best"` → `{"prompt": "question", "chosen": "best"}`."""
    mapping: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        target, equals, column = (part.strip() for part in item.partition("="))
        target = SYNONYMS.get(target, target)
        if not equals or not column:
            raise DataError(f"--columns {item}: write it as name=column, for example prompt=question")
        if target not in TARGETS:
            raise DataError(
                f"--columns {item}: '{target}' is not one of {', '.join(TARGETS)}{nearest(target, TARGETS)}"
            )
        mapping[target] = column
    return mapping


def recognise(row: Row, columns: Mapping[str, str]) -> Shape:
    """The shape of a source from its first row; `columns` (our name → its name) forces it. Raises RowError."""
    if columns:
        if missing := [column for column in columns.values() if column not in row]:
            raise RowError(f"has no column '{missing[0]}'{nearest(missing[0], row)} (it has {', '.join(row)})")
        names = dict(columns)
    else:
        names = {name: name for name in row if name in TARGETS}
        for other, name in SYNONYMS.items():
            if other in row and name not in names:
                names[name] = other
    for needed, function, says in SHAPES:
        if all(name in names for name in needed):
            used = {n: names[n] for n in (*needed, *OPTIONAL) if n in names}
            kind = "conversational " if any(isinstance(row.get(c), (list, tuple)) for c in used.values()) else ""
            if kind and needed in (("messages",), ("prompt", "answers")):
                kind = ""
            ordered = sorted(used, key=lambda n: (n != "prompt", n != "system", list(used).index(n)))
            shown = ", ".join(n if n == used[n] else f"{n} from {used[n]}" for n in ordered)
            return Shape(f"{kind}{says}: {shown}", _renaming(function, used, needed), mapped=bool(columns))
    raise RowError(
        f"has the columns {', '.join(map(repr, row)) or 'none'}, which fit no known shape{_nearest_target(row)}; name "
        "them with --columns prompt=…,chosen=…,rejected=… or give --data-adapter file.py:function"
    )


def _renaming(function: Adapter, names: Mapping[str, str], needed: Sequence[str]) -> Adapter:
    required = [names[n] for n in needed]

    def adapt(row: Row) -> Iterable[Example]:
        for column in required:
            if column not in row:
                raise RowError(f"has no column '{column}'{nearest(column, row)}")
        return function({name: row.get(column) for name, column in names.items()})

    return adapt


def _nearest_target(row: Row) -> str:
    for name in row:
        hint = nearest(name, [*TARGETS, *SYNONYMS])
        if hint:
            return f" ('{name}'{hint.rstrip('?')})"
    return ""
