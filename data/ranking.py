"""Shapes of several answers to a prompt: lists with scores or ranks, two answers and a judgement, trees of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.example import Remark, Row, RowError, Unlearned, kind_of
from data.judgements import RANK_FIELDS, SCORE_FIELDS, TEXT_FIELDS, as_many, lean, ranked_pairs, score_of
from data.shapes import ASKED, Found, pairs, question
from data.turns import as_response, listed
from data.written import BEGINS_AS_LIST, read_written

STEPS = "has labels for the steps of one answer (stepwise supervision), which cannot be ranked"


def ranked(row: Row) -> Iterator[Found]:
    """A prompt and several answers: best first, or with scores (more is better) or ranks (less is better), which may
    stand in the answers. Answers without a score or a rank are left out, where others have one."""
    prompt = question(row)
    if row.get("labels") is not None:
        raise RowError(STEPS)
    answers = row["answers"]
    if not isinstance(answers, (list, tuple)) or not answers:
        raise RowError(f"answers is {kind_of(answers)}, not a list of texts; --columns answers= leaves the column out")
    answers, inside, remarks = _opened(answers)
    yield from remarks
    row = {**row, **inside}
    name = next((n for n in ("scores", "ranks") if row.get(n) is not None), "scores" if "scores" in row else "ranks")
    values = row.get(name)
    if values is None and name not in row:
        values = [-i for i in range(len(answers))]
    elif values is None:
        values = [None] * len(answers)
    elif not isinstance(values, (list, tuple)):
        raise RowError(f"{name} is not a list of numbers")
    as_many(answers, values)
    texts, scores = [], []
    for i, (answer, value) in enumerate(zip(answers, values, strict=True)):
        score = score_of(value, name)
        if score is None:
            yield Remark(f"answer without a {name.removesuffix('s')} is left out")
            continue
        try:
            texts.append(as_response(answer, prompt, f"answers ({i + 1})"))
            scores.append(-score if name == "ranks" and name in row else score)
        except Unlearned as error:
            yield Remark(str(error))
    yield from ranked_pairs(prompt, texts, scores)


def _opened(answers: Sequence[Any]) -> tuple[list[Any], dict[str, list[Any]], list[Remark]]:
    """Answers that are mappings of a text and its score or rank, as texts; the scores or ranks; what is not used."""
    items = [a for a in answers if isinstance(a, Mapping) and "role" not in a and "from" not in a]
    if not items:
        return list(answers), {}, []
    if len(items) < len(answers):
        raise RowError("answers holds mappings and other values")
    key = next((name for name in TEXT_FIELDS if all(name in item for item in items)), None)
    if key is None:
        raise RowError(
            f"answers holds mappings without a text (they have {', '.join(map(str, items[0]))}); --columns answers= "
            "leaves the column out"
        )
    inside: dict[str, list[Any]] = {}
    used = key
    for name, fields in (("scores", SCORE_FIELDS), ("ranks", RANK_FIELDS)):
        field = next((f for f in fields if any(f in item for item in items)), None)
        if field is not None:
            inside, used = {name: [item.get(field) for item in items]}, field
            break
    if not inside:
        raise RowError(f"answers holds mappings without a score or a rank (they have {', '.join(map(str, items[0]))})")
    left = dict.fromkeys(
        field for item in items for field, value in item.items()
        if field not in (key, used) and field in _TELLING and value not in (None, "", [], {})
    )  # fmt: skip
    return [item[key] for item in items], inside, [Remark(f"field '{field}' of answers is not used") for field in left]


_TELLING = {*SCORE_FIELDS, *RANK_FIELDS, "annotations", "critique", "custom_system_prompt", "principle", "label"}


def duel(row: Row) -> Iterator[Found]:
    """Two answers to a prompt, or two conversations, and which is better. Ties give nothing."""
    value = lean(row, row["sides"])
    if not value:
        if value is None:
            yield Remark("two answers without a judgement are left out")
        return
    if "preference" in row and abs(value) != 1:
        yield Remark("the strength of a preference is not used, only which answer it prefers")
    if all(
        isinstance(row.get(name), str) and BEGINS_AS_LIST.match(row[name]) for name in ("prompt", "first", "second")
    ):
        row = {**row, **{name: read_written(row[name], "answers") for name in ("prompt", "first", "second")}}
        yield Remark("lists of questions and answers written as text are read as conversations")
    row = {**row, **_alternating(row)}
    if not _have_one_prompt(row):
        yield Remark("two answers that differ before their last turn are left out")
        return
    order = ("first", "second") if value > 0 else ("second", "first")
    rest = {name: item for name, item in row.items() if name in ASKED}
    yield from pairs({**rest, "chosen": row[order[0]], "rejected": row[order[1]]})


def _alternating(row: Row) -> dict[str, Any]:
    """A conversation that is written as the list of all questions and the lists of all answers to them."""
    values = [row.get(name) for name in ("prompt", "first", "second")]
    lists = [v for v in values if isinstance(v, (list, tuple)) and v and all(isinstance(t, str) for t in v)]
    if len(lists) < 3:
        return {}
    questions, *answers = lists
    if any(len(texts) != len(questions) for texts in answers):
        raise RowError(
            f"prompt has {len(questions)} questions, and the answers are {' and '.join(str(len(t)) for t in answers)}"
        )
    talks = [
        [turn for q, a in zip(questions, texts, strict=True) for turn in
         ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
        for texts in answers
    ]  # fmt: skip
    return {"prompt": None, "first": talks[0], "second": talks[1]}


def _have_one_prompt(row: Row) -> bool:
    """Whether two conversations differ in their last turn alone, as far as they are conversations."""
    talks = [row[name] for name in ("first", "second") if isinstance(row[name], (list, tuple))]
    return len(talks) < 2 or [*talks[0][:-1]] == [*talks[1][:-1]]


def tree_of(root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a tree whose replies are nested, each with its parent, as OpenAssistant's rows have them."""
    found: list[dict[str, Any]] = []
    waiting: list[tuple[Mapping[str, Any], str | None]] = [(root, None)]
    while waiting:
        message, parent = waiting.pop(0)
        if not isinstance(message, Mapping) or not {"text", "role"} <= message.keys():
            raise RowError("a message of the tree has no text or no role")
        name = str(message.get("message_id", len(found)))
        found.append({**message, "message_id": name, "parent_id": parent})
        waiting += [(reply, name) for reply in listed(message.get("replies")) or ()]
    return found
