"""Which shape rows have. A source is recognised by the columns that any of its first rows has; each row is then read by
the columns that it has itself, and a column that has a meaning and is not used is remarked upon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

from data.beside import belongs, set_beside
from data.columns import EMBEDDING, MEDIA, REFUSED, SYNONYMS, Names, names_of, tells
from data.example import Remark, Row, RowError
from data.forms import FORMS, ONLY_PROMPTS, PAIRS, TARGETS, TEXT, Form
from data.labels import judged, scored
from data.native import TALKS, native
from data.ranking import STEPS, ranked
from data.shapes import Found, Shape
from data.sides import choices_of, normal, two_answers
from data.turns import is_transcript, transcript
from data.unused import check_pictures, empty, unused
from data.written import BEGINS_AS_MESSAGES, are_messages, read_written
from rlhf.errors import DataError, nearest


class Plan(NamedTuple):
    """How rows with certain columns are read: our names → their columns; the columns that are left, with the reason if
    there is one; those that say nothing, those that may hold pictures, and those of `data.beside`, by their names."""

    form: Form
    names: dict[str, str]
    left: dict[str, str]
    unread: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    beside: Mapping[str, str] = MappingProxyType({})


def parse_columns(text: str) -> dict[str, str]:
    """`"prompt=question,chosen=best"` → `{"prompt": "question", "chosen": "best"}`; "score=" says that no column is
    the score, `{"score": ""}`."""
    mapping: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        target, equals, column = (part.strip() for part in item.partition("="))
        target = SYNONYMS.get(target, target)
        if not equals:
            raise DataError(f"--columns {item}: write it as name=column, for example prompt=question")
        if target not in TARGETS:
            raise DataError(
                f"--columns {item}: '{target}' is not one of {', '.join(TARGETS)}{nearest(target, TARGETS)}"
            )
        mapping[target] = column
    return mapping


def recognise(rows: Sequence[Row], columns: Mapping[str, str]) -> Shape:
    """The shape of a source from its first rows. `columns` (our name → its name) must all be used; columns that have
    our names are used beside them. Raises RowError."""
    there = list(dict.fromkeys(column for row in rows for column in row))
    if missing := [column for column in columns.values() if column and column not in there]:
        raise RowError(f"has no column '{missing[0]}'{nearest(missing[0], there)} (it has {', '.join(there)})")
    file = names_of(rows, columns, TARGETS)
    main = _main(rows, file) or _plan(there, file)
    held = [column for column in there if any(not empty(row.get(column)) for row in rows)]
    if main is None and (reason := next((REFUSED[normal(c)] for c in held if normal(c) in REFUSED), None)):
        raise RowError(reason)
    if any(normal(column) == EMBEDDING for column in held):
        raise RowError(f"holds pairs of texts for an embedding ({EMBEDDING}), not for a language model")
    texts = partial(_holds_texts, rows)
    close = {normal(column): column for column in held if normal(column) in ("positive", "negative")}
    unanswered = main is None or main.form.says == ONLY_PROMPTS
    if not file.columns and len(close) == 2 and unanswered and all(map(texts, close.values())):
        raise RowError(
            "holds texts for an embedding (positive, negative), not answers; if they are answers, give --columns "
            f"chosen={close['positive']},rejected={close['negative']}"
        )
    if not file.columns and not (main and main.form.says == TEXT) and (choices := choices_of(filter(texts, held))):
        raise RowError(
            f"holds a question with choices ({', '.join(choices)}), which are in no prompt; write them into the "
            f"question and leave {'this column' if len(choices) == 1 else 'these columns'} out"
        )
    if main is None or (main.form.says == ONLY_PROMPTS and two_answers(there) and not file.columns):
        raise RowError(_unknown(rows, there, file))
    if main.form.says == ONLY_PROMPTS and not file.columns:
        half = next((c for c in held if file.name_of(c) in ("rejected", "rejected_messages") and texts(c)), None)
        if half:
            raise RowError(
                f"has worse answers ({half}) and no column known to hold the better ones; name it with --columns "
                "chosen=…, or give --columns rejected= to read the prompts alone"
            )
    if main.form.adapt is ranked and "labels" in main.names:
        names = {"prompt": "prompt", **main.names}
        way = f"--columns prompt={names['prompt']},answers={names['answers']},scores={names['labels']}"
        raise RowError(f"{STEPS}; if each text is an answer of its own, give {way}")
    if main.form.says == ONLY_PROMPTS and _has_steps(rows):
        raise RowError(STEPS)
    if main.form.says == PAIRS and not {"prompt", "instruction", "messages"} & main.names.keys():
        _check_questions(rows, main.names, held)
    plan = _planner(main, file)
    others = dict.fromkeys(form for form in (plan(f).form for f in map(_filled, rows)) if form is not main.form)
    read = [_says(main, rows), *plan(tuple(there)).beside.values()]
    says = "; ".join([", ".join(read), *(f"others are {form.says}" for form in others)])
    unread: set[str] = set()
    return Shape(says, _reader(main, plan, unread), mapped=bool(columns), unread=unread)


def _holds_texts(rows: Sequence[Row], column: str) -> bool:
    """Whether a column holds texts or more, not numbers alone."""
    return any(isinstance(row.get(column), (str, list, tuple, Mapping)) for row in rows)


def _check_questions(rows: Sequence[Row], names: Mapping[str, str], held: Sequence[str]) -> None:
    """Raises RowError where chosen and rejected are texts without a question, and another column may be it."""
    answers = [row.get(names["chosen"]) for row in rows]
    texts = [value for value in answers if isinstance(value, str)]
    if len(texts) < len(answers) or any(is_transcript(text) or BEGINS_AS_MESSAGES.match(text) for text in texts):
        return
    others = [c for c in held if c not in names.values() and all(isinstance(r.get(c), (str, list)) for r in rows)]
    others.sort(key=lambda column: isinstance(rows[0][column], str))
    if others:
        raise RowError(
            f"{names['chosen']} is not a transcript (Human: … Assistant: …) and there is no prompt column; name the "
            f"question's with --columns prompt=… (one of {', '.join(others)}?)"
        )


def _has_steps(rows: Sequence[Row]) -> bool:
    """Whether rows hold a label for each step of a text: a list of them, or the text once more with marks in it."""
    return any(
        (isinstance(value, (list, tuple)) and len(value) > 0 and normal(column) in ("labels", "value", "step_labels"))
        or (normal(column) == "label" and isinstance(value, str) and "Step 1" in value and value.rstrip()[-1:] in "+-")
        for row in rows
        for column, value in row.items()
    )


def _main(rows: Sequence[Row], file: Names) -> Plan | None:
    """The first shape of those that rows have, with the columns of all rows of that shape."""
    kinds = dict.fromkeys((_filled(row), tuple(row)) for row in rows)
    plans = [found for found in (_intended(*kind, file) for kind in kinds) if found]
    plans = [plan for plan in plans if set(file.columns) <= set(plan.names)]
    if not plans:
        return None
    form = min((plan.form for plan in plans), key=FORMS.index)
    names: dict[str, str] = {}
    for plan in plans:
        names |= {n: c for n, c in plan.names.items() if plan.form is form and n not in names}
    return Plan(form, names, {})


def _intended(filled: Sequence[str], there: Sequence[str], file: Names) -> Plan | None:
    """What a row was to be: its filled columns decide, but a null beside the other half of a shape is an error."""
    own, whole = _plan(filled, file), _plan(there, file)
    if own and whole and any(whole.names[n] in filled for n in whole.form.needs if n not in own.names):
        return whole
    return own or whole


def _filled(row: Row) -> tuple[str, ...]:
    return tuple(column for column, value in row.items() if value is not None)


def _plan(there: Iterable[str], file: Names) -> Plan | None:
    """The first shape that fits columns, if it uses all that the user names."""
    there = list(there)
    names = file.among(there)
    for form in FORMS:
        if all(name in names for name in form.needs) and all(n in form.names for n in file.columns if n in names):
            used = {name: names[name] for name in form.names if name in names}
            if used.get("prompt", "instruction") != "instruction" and names.get("input") not in _deliberate(file):
                used.pop("input", None)  # belongs to an instruction
            for better, worse in (("prompt", "instruction"), ("prompt", "messages"), ("instruction", "messages")):
                if better in used and worse in used and worse not in form.needs:
                    del used[worse]  # one of them is the prompt
            if not {"prompt", "instruction", "messages"} & set(used):
                for name in ("input", "history"):
                    used.pop(name, None)
            return _leave(form, used, there, file)
    return None


def _deliberate(file: Names) -> set[str]:
    """Columns that belong to any prompt: the user names them, or they are called a context."""
    return {*file.columns.values(), *(column for column in file.found if normal(column) == "context")}


def _leave(form: Form, used: dict[str, str], there: Iterable[str], file: Names) -> Plan:
    """A plan, with what becomes of the columns that it does not use."""
    left: dict[str, str] = {}
    unread, media, beside = [], [], dict[str, str]()
    answered = "chosen" in used and "rejected" not in used
    for column in there:
        kind = normal(column)
        if column in used.values():
            continue
        if kind in MEDIA and form.says != TEXT:
            media.append(column)
        elif belongs(kind, answered=answered) and form.says != TEXT:
            beside[kind] = column
        elif (
            (file.name_of(column) or "text") != "text"
            or column in file.why
            or tells(kind)
            or kind in MEDIA
            or _chooses(kind, there)
        ):
            left[column] = file.why.get(column, "")
        else:
            unread.append(column)
    return Plan(form, used, left, tuple(unread), tuple(media), beside)


def _chooses(kind: str, there: Iterable[str]) -> bool:
    """Whether a column is a dataset's name, which chooses the verifier of its ground truth."""
    return kind == "dataset" and "ground_truth" in there


def _planner(main: Plan, file: Names) -> Callable[[tuple[str, ...]], Plan]:
    """Filled columns of a row → how it is read: as the source's rows are, or, if it has no column of theirs, by a shape
    of its own."""

    @lru_cache(maxsize=1000)
    def plan(filled: tuple[str, ...]) -> Plan:
        own = _plan(filled, file)
        if own and all(name in own.names for name in main.form.needs):
            return own
        if own and own.form.says != TEXT and not set(own.form.needs) & set(main.names):
            return own
        names = dict(main.names) | ({n: c for n, c in own.names.items() if n in main.form.names} if own else {})
        return _leave(main.form, names, filled, file)

    return plan


def _reader(main: Plan, plan: Callable[[tuple[str, ...]], Plan], unread: set[str]) -> Callable[[Row], Iterator[Found]]:
    expected = [name for name in ("scores", "ranks", "label", "score", "rank") if name in main.names]

    def adapt(row: Row) -> Iterator[Found]:
        form, names, left, rest, media, beside = plan(_filled(row))
        unread.update(rest)
        for name in form.needs:
            if names[name] not in row:
                raise RowError(f"has no column '{names[name]}'{nearest(names[name], row)}")
        check_pictures(row, media)
        values: dict[str, Any] = {name: None for name in expected if name in form.names}
        values |= {name: row.get(column) for name, column in names.items()}
        for name, value in values.items():
            if isinstance(value, str) and (found := read_written(value, name)) is not None:
                values[name] = found
                yield Remark(f"column '{names[name]}': list written as text is read as a list")
            if name == "messages" and is_transcript(values[name]):
                values[name] = transcript(values[name], answered=True)
            if name in TALKS and not isinstance(values[name], str):
                values[name] = native(values[name], name)
        said = list(unused(row, values, left))
        if "first" in values:
            values["sides"] = (names["first"], names["second"])
            values["models"] = (row.get("model_a"), row.get("model_b"))
        found = form.adapt(values)
        if beside:
            found = set_beside(found, row, beside)
        if "label" in values:
            found = judged(found, values["label"], main.names.get("label", "label"))
        elif "score" in values or "rank" in values:
            found = scored(found, values.get("score"), values.get("rank"))
        yield from found
        yield from said

    return adapt


# --- words -----------------------------------------------------------------------------------------------------------


def _says(plan: Plan, rows: Sequence[Row]) -> str:
    """A shape in words: its kind and the columns that it reads."""
    form, used = plan.form, plan.names
    shapeless = not {"messages", "answers", "first"} & set(form.needs)
    values = (row.get(c) for n, c in used.items() if n not in ("scores", "ranks", "history") for row in rows)
    kind = "conversational " if shapeless and any(isinstance(v, (list, tuple, dict)) for v in values) else ""
    judge = next((f", if {what}" for name, what in JUDGES.items() if name in used), "")
    order = ("prompt", "system", *form.names)
    shown = (name if name == used[name] else f"{name} from {used[name]}" for name in sorted(used, key=order.index))
    return f"{kind}{form.says}{judge}: {', '.join(shown)}"


JUDGES = {
    "label": "the label is true",
    "score": "no answer beside it has a higher score",
    "rank": "no answer beside it has a better rank",
}


def _unknown(rows: Sequence[Row], there: Sequence[str], file: Names) -> str:
    """Why no shape fits."""
    for name, column in file.columns.items():
        rest = replace(file, columns={n: c for n, c in file.columns.items() if n != name})
        if plan := _plan([c for c in there if c != column], rest):
            return f"has the columns for {plan.form.says}, which do not use --columns {name}={column}; leave it out"
    sides = two_answers(there)
    if sides and (unclear := next((column for column in file.why if normal(column) == "preference"), None)):
        return f"has two answers and a preference ('{unclear}'), but {file.why[unclear]}"
    if sides:
        return (
            f"has two answers ({sides['first']}, {sides['second']}) and no column known to say which is better; "
            "name it with --columns winner=… (it holds the better one's name, number or letter) or preference=… (it is "
            "below 0 where the first is better); if one column always holds the better answer, --columns "
            f"chosen={sides['first']},rejected={sides['second']}"
        )
    for column, why in file.why.items():
        if why.startswith("nothing says"):
            return f"has several answers in '{column}', but {why}"
    for column in there:
        inside = [row[column] for row in rows if isinstance(row.get(column), Mapping)]
        plan = _main(inside, names_of(inside, {}, TARGETS)) if inside and not file.columns else None
        if plan and plan.form.says != TEXT:
            held = ", ".join(dict.fromkeys(str(name) for value in inside for name in value))
            return f"has its columns inside '{column}' ({held}); write them as columns of their own"
    talks = [c for c in there if "messages" not in file.columns and all(map(_may_be_a_talk, (r.get(c) for r in rows)))]
    way = f"messages={talks[0]} if its texts are turns of user and assistant, prompt=…" if talks else "prompt=…"
    return (
        f"has the columns {', '.join(map(repr, there)) or 'none'}, which fit no known shape{_nearest_target(there)}; "
        f"name them with --columns {way},chosen=…,rejected=… or give --data-adapter file.py:function"
    )


def _may_be_a_talk(value: Any) -> bool:
    """Whether a value is a conversation under `--columns messages=`: a transcript, or texts or messages in a list."""
    items = value if isinstance(value, (list, tuple)) else []
    return is_transcript(value) or (len(items) > 1 and all(isinstance(i, str) or are_messages(i) for i in items))


def _nearest_target(there: Iterable[str]) -> str:
    known = list(dict.fromkeys([*TARGETS, *(name for name, ours in SYNONYMS.items() if ours != "label")]))
    for name in there:
        hint = nearest(name, known)
        if hint and normal(name) not in known:
            return f" ('{name}'{hint.rstrip('?')})"
    return ""
