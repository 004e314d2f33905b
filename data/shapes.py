"""The shapes that rows come in: each is a function row → Iterable[Example], and what columns it needs and uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from data.example import Example, Placed, Remark, Row, RowError, Unlearned, check_learned, messages
from data.turns import as_prompt, as_response, implicit_prompt, is_transcript, with_system
from rlhf.template import Message

Found = Example | Remark
Adapter = Callable[[Row], Iterable[Found]]


@dataclass(frozen=True)
class Shape:
    """What a source's rows are, in words for the user, and the function that reads them. `prepare` runs before it if
    rows depend on each other; `mapped` is True if it follows the user's `columns`."""

    says: str
    adapt: Adapter
    prepare: Callable[[Iterable[Placed]], Iterator[Placed]] | None = None
    mapped: bool = False


# --- one function per shape ------------------------------------------------------------------------------------------


def pairs(row: Row) -> Iterator[Found]:
    """chosen, rejected and a prompt: prompt, or instruction and input, or messages that end with a user turn. Without
    any, chosen and rejected are whole conversations."""
    margin = number(row.get("margin"), "margin")
    prompt = asked(row)
    try:
        if prompt is None:
            prompt, chosen, rejected = implicit_prompt(row["chosen"], row["rejected"])
            prompt = tuple(with_system(prompt, row.get("system")))
        else:
            chosen, rejected = (_answer(row, prompt, name) for name in ("chosen", "rejected"))
    except Unlearned as error:
        yield from _without_response(prompt, error)
    else:
        yield Example(prompt, chosen, rejected, margin=margin)


def pairs_of_instruction(row: Row) -> Iterator[Found]:
    """instruction, input, output and the worse output."""
    yield from pairs({**row, "chosen": row["output"]})


def pairs_of_conversation(row: Row) -> Iterator[Found]:
    """messages, of which the last assistant turn is chosen, and the rejected turn in its place."""
    turns = messages(row["messages"], "messages")
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError("messages does not end with an assistant turn, the chosen one")
    prompt = tuple(with_system(turns[:-1], row.get("system")))
    rest = {"prompt": prompt, "chosen": row["messages"][-1], "rejected": row["rejected"]}
    yield from pairs({"margin": row.get("margin"), **rest})


def pairs_of_conversations(row: Row) -> Iterator[Found]:
    """messages and rejected_messages, two conversations that differ in their last assistant turn."""
    rest = {name: row.get(name) for name in ("system", "margin")}
    yield from pairs({"chosen": row["messages"], "rejected": row["rejected_messages"], **rest})


def demonstration(row: Row) -> Iterator[Found]:
    """A prompt, or an instruction with its input, and chosen (or completion, response)."""
    prompt = asked(row)
    assert prompt is not None
    try:
        yield Example(prompt, _answer(row, prompt, "chosen"))
    except Unlearned as error:
        yield from _without_response(prompt, error)


def conversation(row: Row) -> Iterator[Found]:
    """messages: the last assistant turn is the response, all before it the prompt."""
    turns = messages(row["messages"], "messages")
    count = len(turns)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RowError("messages has no assistant turn")
    if len(turns) < count:
        yield Remark("turn after the last assistant turn is not used")
    prompt = tuple(with_system(turns[:-1], row.get("system"))) if len(turns) > 1 else ()
    try:
        check_learned(row["messages"][len(turns) - 1])
    except Unlearned as error:
        yield from _without_response(prompt, error)
    else:
        yield Example(prompt, turns[-1]["content"])


def instruction(row: Row) -> Iterator[Found]:
    """instruction, input (may be empty), output."""
    if not isinstance(row["instruction"], str):
        raise RowError("instruction is not text")
    prompt = asked(row)
    assert prompt is not None
    yield Example(prompt, row["output"])


def ranked(row: Row) -> Iterator[Found]:
    """prompt and several answers: best first, or with scores (more is better) or ranks (less is better). Answers
    without a score or a rank are left out, where others have one."""
    prompt = asked(row)
    assert prompt is not None
    if row.get("labels") is not None:
        raise RowError(STEPS)
    answers = row["answers"]
    if not isinstance(answers, (list, tuple)) or not answers:
        raise RowError("answers is not a list of texts")
    name = next((n for n in ("scores", "ranks") if row.get(n) is not None), "scores" if "scores" in row else "ranks")
    values = row.get(name)
    if values is None and name not in row:
        values = [-i for i in range(len(answers))]
    elif values is None:
        values = [None] * len(answers)
    elif not isinstance(values, (list, tuple)):
        raise RowError(f"{name} is not a list of numbers")
    _as_many(answers, values)
    texts, scores = [], []
    for i, (answer, value) in enumerate(zip(answers, values, strict=True)):
        score = None if value is None or value == "" else number(value, name)
        if score is None or math.isnan(score):
            yield Remark(f"answer without a {name.removesuffix('s')} is left out")
            continue
        try:
            texts.append(as_response(answer, prompt, f"answers ({i + 1})"))
            scores.append(-score if name == "ranks" and name in row else score)
        except Unlearned as error:
            yield Remark(str(error))
    yield from ranked_pairs(prompt, texts, scores)


def ranked_pairs(prompt: tuple[Message, ...], texts: Sequence[str], scores: Sequence[float]) -> Iterator[Example]:
    """Every pair of answers with different scores; only the best answers are demonstrations."""
    _as_many(texts, scores)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    for better, worse in combinations(order, 2):
        if scores[better] > scores[worse]:
            best = scores[better] == scores[order[0]]
            yield Example(prompt, texts[better], texts[worse], demonstrates=best)


def prompt_only(row: Row) -> Iterator[Found]:
    prompt = asked(row)
    assert prompt is not None
    yield Example(prompt)


def plain_text(row: Row) -> Iterator[Found]:
    """text, for the pretraining mix; blank rows give nothing."""
    if not isinstance(row["text"], str):
        raise RowError("text is not text")
    if row["text"].strip():
        yield Example(text=row["text"])


# --- pieces of them --------------------------------------------------------------------------------------------------

STEPS = (
    "has labels for the steps of one answer (stepwise supervision), which cannot be ranked; if each text is an answer "
    "of its own, give --columns prompt=prompt,answers=completions,scores=labels"
)


def asked(row: Row) -> tuple[Message, ...] | None:
    """The prompt of a row, with system, history and input; None if no column is for it."""
    before = {name: row.get(name) for name in ("system", "history")}
    for name in ("prompt", "instruction"):
        if row.get(name) is not None:
            return as_prompt(row[name], name, extra=row.get("input"), **before)
    turns = row.get("messages")
    if isinstance(turns, (list, tuple)) and turns and messages(turns, "messages")[-1]["role"] == "user":
        return as_prompt(turns, "messages", **before)
    return None


def _answer(row: Row, prompt: Sequence[Message], name: str) -> str:
    text = as_response(row[name], prompt, name)
    # After "Assistant:" a transcript's answer begins with a space that is not part of it.
    return text.strip() if is_transcript(row.get("prompt")) else text


def _without_response(prompt: tuple[Message, ...] | None, why: Unlearned) -> Iterator[Found]:
    yield Remark(str(why))
    if prompt:
        yield Example(prompt)


def _as_many(answers: Sequence[Any], values: Sequence[Any]) -> None:
    if len(answers) != len(values):
        raise RowError(f"there are {len(answers)} answers but {len(values)} scores or ranks")


def number(value: Any, name: str) -> float:
    """A number that may be written as text, as in CSV; an empty value is 0."""
    if value is None or value == "":
        return 0.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RowError(f"{name} is {value!r}, not a number") from None


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A shape by its columns: those that it needs, those that it also uses, its function and its name."""

    needs: tuple[str, ...]
    uses: tuple[str, ...]
    adapt: Adapter
    says: str

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.needs, *self.uses)


BEFORE = ("system", "history")
TASK = ("input", *BEFORE)
PAIRS, TALKS = "preference pairs", "conversations, of which the last assistant turn is learned"
# The first whose needed columns are all there is taken.
FORMS = (
    Form(("prompt", "answers"), (*TASK, "scores", "ranks", "labels"), ranked, "ranked answers, expanded to pairs"),
    Form(("chosen", "rejected"), ("prompt", "instruction", *TASK, "messages", "margin"), pairs, PAIRS),
    Form(("instruction", "output", "rejected"), (*TASK, "margin"), pairs_of_instruction, PAIRS),
    Form(("messages", "rejected"), ("system", "margin"), pairs_of_conversation, PAIRS),
    Form(("messages", "rejected_messages"), ("system", "margin"), pairs_of_conversations, PAIRS),
    Form(("prompt", "chosen"), (*TASK, "label"), demonstration, "prompts with a response"),
    Form(("messages",), ("system", "label"), conversation, TALKS),
    Form(("instruction", "output"), (*TASK, "label"), instruction, "instructions with an output"),
    Form(("instruction", "chosen"), (*TASK, "label"), demonstration, "instructions with a response"),
    Form(("prompt",), TASK, prompt_only, "prompts only"),
    Form(("text",), (), plain_text, "plain text"),
)
