"""The shapes that rows come in: each is a function row → Iterable[Example]. `data.forms` has the columns of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.example import (
    Example,
    Placed,
    Remark,
    Row,
    RowError,
    Unlearned,
    answer_of,
    assistant_turns,
)
from data.judgements import is_tie, number, score_of
from data.messages import check_learned, messages, with_tools
from data.turns import as_prompt, as_response, implicit_prompt, is_transcript, spoken, with_system
from rlhf.template import Message

Found = Example | Remark
BESIDE = ("margin", "chosen_score", "rejected_score", "status")  # columns that judge a pair
Adapter = Callable[[Row], Iterable[Found]]


@dataclass(frozen=True)
class Shape:
    """What a source's rows are, in words for the user, and the function that reads them. `prepare` runs before it if
    rows depend on each other; `mapped` is True if it follows the user's `columns`; `unread` gathers the columns that
    say nothing that a shape reads."""

    says: str
    adapt: Adapter
    prepare: Callable[[Iterable[Placed]], Iterator[Placed]] | None = None
    mapped: bool = False
    unread: set[str] = field(default_factory=set, compare=False)


# --- one function per shape ------------------------------------------------------------------------------------------


def pairs(row: Row) -> Iterator[Found]:
    """chosen, rejected and a prompt: prompt, or instruction and input, or messages that end with a user turn. Without
    any, chosen and rejected are whole conversations. Lists of texts make a pair of each
    two. Pairs whose scores are equal give nothing."""
    worse_ones, better_ones = row["rejected"], row["chosen"]
    if are_texts(worse_ones):
        for better in better_ones if are_texts(better_ones) else [better_ones]:
            for worse in worse_ones:
                yield from pairs({**row, "chosen": better, "rejected": worse})
        return
    margin = number(row.get("margin"), "margin")
    better, worse = (score_of(row.get(name), name) for name in ("chosen_score", "rejected_score"))
    if is_tie(row.get("status")):
        return
    if better is not None and worse is not None and better <= worse:
        if better < worse:
            yield Remark("pair whose scores contradict it (chosen has the lower one) is left out")
        return
    prompt = asked(row)
    try:
        if prompt is None:
            prompt, chosen, rejected = implicit_prompt(row["chosen"], row["rejected"])
            prompt = tuple(with_tools(with_system(prompt, row.get("system")), row.get("tools")))
        else:
            prompt = _within(prompt, chosen=row["chosen"], rejected=row["rejected"])
            chosen, rejected = (_answer(row, prompt, name) for name in ("chosen", "rejected"))
    except Unlearned as error:
        yield from _without_response(prompt, error)
    else:
        yield Example(prompt, chosen, rejected, margin=margin)


def are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(text, str) for text in value)


def pairs_of_instruction(row: Row) -> Iterator[Found]:
    """instruction, input, output and the worse output."""
    yield from pairs({**row, "chosen": row["output"]})


def pairs_of_conversation(row: Row) -> Iterator[Found]:
    """messages, of which the last assistant turn is chosen, and the rejected turn in its place."""
    turns = messages(row["messages"], "messages")
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError("messages does not end with an assistant turn, the chosen one")
    prompt = tuple(with_tools(with_system(turns[:-1], row.get("system")), row.get("tools")))
    rest = {"prompt": prompt, "chosen": row["messages"][-1], "rejected": row["rejected"]}
    yield from pairs({**{name: row.get(name) for name in BESIDE}, **rest})


def pairs_of_conversations(row: Row) -> Iterator[Found]:
    """messages and rejected_messages, two conversations that differ in their last assistant turn."""
    rest = {name: row.get(name) for name in ("system", "tools", *BESIDE)}
    yield from pairs({"chosen": row["messages"], "rejected": row["rejected_messages"], **rest})


def demonstration(row: Row) -> Iterator[Found]:
    """A prompt, or an instruction with its input, and chosen (or completion, response)."""
    prompt = question(row)
    prompt = _within(prompt, chosen=row["chosen"])
    if isinstance(row["chosen"], (list, tuple)) and len(row["chosen"]) > 1:
        turns = messages(row["chosen"], "chosen")
        if turns[0]["role"] == "assistant":
            yield from conversation(
                {"messages": [*prompt, *row["chosen"]], "tools": prompt[0].get("tools")}, len(prompt)
            )
            return
    try:
        yield Example(prompt, _answer(row, prompt, "chosen"), learned=_of_history(row, prompt))
    except Unlearned as error:
        yield from _without_response(prompt, error)


def talk(row: Row) -> Iterator[Found]:
    """messages: the demonstration up to the last assistant turn; a question at the end is a prompt of its own."""
    turns = messages(row["messages"], "messages")
    if not turns:
        raise RowError("messages has no turn")
    if turns[0]["role"] == "assistant":
        only = "; text without a question belongs in a column 'text'" if len(turns) == 1 else ""
        raise RowError(f"messages begins with an assistant turn, not with a user's{only}")
    if turns[-1]["role"] in ("user", "tool"):
        prompt = tuple(with_tools(with_system(turns, row.get("system")), row.get("tools")))
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        if row.get("label") is not None and not turns:
            raise RowError("messages has a label and no answer; labels of questions (classification) are not read")
        yield Example(prompt)
    if turns:
        yield from conversation({**row, "messages": row["messages"][: len(turns)]})


def answered_talk(row: Row) -> Iterator[Found]:
    """messages that end with a question, and chosen; else as messages alone."""
    if row["chosen"] is not None and asked(row) is not None:
        yield from demonstration(row)
        return
    turns = messages(row["messages"], "messages")
    if row["chosen"] is not None and turns and row["chosen"] != turns[-1]["content"]:
        yield Remark("a response beside messages that end with one is not used")
    yield from talk(row)


def whole(row: Row) -> Iterator[Found]:
    """chosen, which is a whole conversation, its question included."""
    if not isinstance(row["chosen"], (list, tuple)):
        raise RowError("chosen is an answer without a question; name the question's column with --columns prompt=…")
    yield from talk({**row, "messages": row["chosen"]})


def conversation(row: Row, begin: int = 0) -> Iterator[Found]:
    """messages: the last assistant turn is the response, all before it the prompt, of which the assistant turns from
    the place `begin` on are learned as well, unless they say otherwise."""
    turns = messages(row["messages"], "messages")
    count = len(turns)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RowError("messages has no assistant turn")
    if len(turns) < count:
        yield Remark("turn after the last assistant turn is not used")
    learned = []
    for turn in (place for place in assistant_turns(turns) if place >= begin):
        try:
            check_learned(row["messages"][turn])
            learned.append(turn)
        except Unlearned as error:
            yield Remark(str(error))
    whole = with_tools(with_system(turns, row.get("system")), row.get("tools"))
    learned = [turn + len(whole) - len(turns) for turn in learned]
    if learned:
        *earlier, last = learned
        yield Example(tuple(whole[:last]), answer_of(whole[last]), learned=tuple(earlier))
    if (not learned or last < len(whole) - 1) and len(turns) > 1:
        yield Example(tuple(whole[:-1]))


def instruction(row: Row) -> Iterator[Found]:
    """instruction, input (may be empty), output."""
    yield from demonstration({**row, "chosen": row["output"]})


def prompt_only(row: Row) -> Iterator[Found]:
    prompt = question(row)
    yield Example(prompt)


def plain_text(row: Row) -> Iterator[Found]:
    """text, for the pretraining mix; blank rows give nothing."""
    if not isinstance(row["text"], str):
        raise RowError("text is not text")
    if row["text"].strip():
        yield Example(text=row["text"])


# --- pieces of them --------------------------------------------------------------------------------------------------

BEFORE = ("system", "history", "tools")  # columns of what stands before a question
ASKED = ("prompt", "instruction", "messages", "input", *BEFORE)  # columns that make a prompt


def asked(row: Row) -> tuple[Message, ...] | None:
    """The prompt of a row, with system, history and input; None if no column is for it."""
    before = {name: row.get(name) for name in BEFORE}
    for name in ("prompt", "instruction"):
        if row.get(name) is not None:
            return as_prompt(row[name], name, extra=row.get("input"), **before)
    turns = row.get("messages")
    if isinstance(turns, (list, tuple)) and turns and messages(turns, "messages")[-1]["role"] == "user":
        return as_prompt(turns, "messages", **before)
    return None


def question(row: Row) -> tuple[Message, ...]:
    """The prompt of a row that must have one."""
    prompt = asked(row)
    if prompt is None:
        raise RowError("has no question: the column of its prompt is empty (null)")
    return prompt


def _within(prompt: tuple[Message, ...], **answers: Any) -> tuple[Message, ...]:
    """The prompt as answers that are whole conversations have it: with their system turn, and with the turns before
    and after a prompt that is only one question of them."""
    talks = [messages(value, name) for name, value in answers.items() if isinstance(value, (list, tuple))]
    before = [turns[:-1] for turns in talks if any(turn["role"] == "user" for turn in turns[:-1])]
    if not before or len(before) < len(answers) or any(turns != before[0] for turns in before):
        return prompt
    if prompt[0]["role"] == before[0][0]["role"] == "system" and prompt[0] != before[0][0]:
        raise RowError("prompt and chosen have different system turns")
    own, there = spoken(prompt), spoken(before[0])
    if own == there or (len(own) == 1 and own[0] in there):
        whole = with_system(before[0], prompt[0]["content"] if prompt[0]["role"] == "system" else None)
        return tuple(with_tools(whole, prompt[0].get("tools")))
    return prompt


def _of_history(row: Row, prompt: Sequence[Message]) -> tuple[int, ...]:
    """The answers of a history column, which are learned; those in a prompt column are context."""
    if not row.get("history"):
        return ()
    return assistant_turns(prompt)


def _answer(row: Row, prompt: Sequence[Message], name: str) -> str:
    text = as_response(row[name], prompt, name)
    # After "Assistant:" a transcript's answer begins with a space that is not part of it, or with that word again.
    return text.strip().removeprefix("Assistant:").strip() if is_transcript(row.get("prompt")) else text


def _without_response(prompt: tuple[Message, ...] | None, why: Unlearned) -> Iterator[Found]:
    yield Remark(str(why))
    if prompt:
        yield Example(prompt)
