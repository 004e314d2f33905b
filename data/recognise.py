"""Which shape rows have. A source is recognised by the columns that any of its first rows has; each row is then read by
the columns that it has itself, and a column that has a meaning and is not used is remarked upon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from data.example import Remark, Row, RowError
from data.labels import judged
from data.shapes import FORMS, STEPS, Form, Found, Shape, plain_text, ranked
from data.written import read_written
from rlhf.errors import DataError, nearest

# Other names that columns commonly have; used where the first name is missing.
SYNONYMS = {
    "query": "prompt",
    "completion": "chosen",
    "response": "chosen",
    "rejected_response": "rejected",
    "responses": "answers",
    "completions": "answers",
    "conversations": "messages",
    "system_prompt": "system",
    "kto_tag": "label",
}
TARGETS = sorted({name for form in FORMS for name in form.names})
CANDIDATES = {**{name: name for name in TARGETS}, **SYNONYMS}  # column → our name, the better ones first
# Columns of common data that say something, beside those that shapes use.
TELLING = {
    *CANDIDATES, "tools", "functions", "images", "image", "videos", "video", "audios", "audio", "answer", "solution",
    "ground_truth", "reference", "target", "score", "rating", "ratings", "reward", "chosen_score", "rejected_score",
    "score_chosen", "score_rejected", "chosen_rating", "rejected_rating", "helpfulness", "correctness", "coherence",
    "complexity", "verbosity", "overall_preference", "preference", "winner", "weight", "reasoning_content", "reasoning",
    "thinking", "chat_template_kwargs",
} - {"text"}  # fmt: skip
FIELDS = (
    *("tool_calls", "function_call", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking"),
    *("train_detail", "images", "image", "videos", "video", "audios", "audio"),
)  # of messages, beside role and content


class Plan(NamedTuple):
    """How rows with certain columns are read: our names → their columns, and the columns that are left."""

    form: Form
    names: dict[str, str]
    left: tuple[str, ...]


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


def recognise(rows: Sequence[Row], columns: Mapping[str, str]) -> Shape:
    """The shape of a source from its first rows. `columns` (our name → its name) must all be used; columns that have
    our names are used beside them. Raises RowError."""
    there = list(dict.fromkeys(column for row in rows for column in row))
    if missing := [column for column in columns.values() if column not in there]:
        raise RowError(f"has no column '{missing[0]}'{nearest(missing[0], there)} (it has {', '.join(there)})")
    main = _main(rows, columns) or _plan(there, columns)
    if main is None:
        raise RowError(_unknown(there, columns))
    if main.form.adapt is ranked and "labels" in main.names:
        raise RowError(STEPS)
    plan = _planner(main, columns)
    others = dict.fromkeys(form for form in (plan(f).form for f in map(_filled, rows)) if form is not main.form)
    says = "; ".join([_says(main, rows), *(f"others are {form.says}" for form in others)])
    return Shape(says, _reader(main, plan), mapped=bool(columns))


def _main(rows: Sequence[Row], columns: Mapping[str, str]) -> Plan | None:
    """The first shape of those that rows have, with the columns of all rows of that shape."""
    kinds = dict.fromkeys((_filled(row), tuple(row)) for row in rows)
    plans = [found for found in (_intended(*kind, columns) for kind in kinds) if found]
    plans = [plan for plan in plans if set(columns) <= set(plan.names)]
    if not plans:
        return None
    form = min((plan.form for plan in plans), key=FORMS.index)
    names: dict[str, str] = {}
    for plan in plans:
        names |= {n: c for n, c in plan.names.items() if plan.form is form and n not in names}
    return Plan(form, names, ())


def _intended(filled: Sequence[str], there: Sequence[str], columns: Mapping[str, str]) -> Plan | None:
    """What a row was to be: its filled columns decide, but a null beside the other half of a shape is an error."""
    own, whole = _plan(filled, columns), _plan(there, columns)
    if own and whole and any(whole.names[n] in filled for n in whole.form.needs if n not in own.names):
        return whole
    return own or whole


def _filled(row: Row) -> tuple[str, ...]:
    return tuple(column for column, value in row.items() if value is not None)


def _plan(there: Iterable[str], columns: Mapping[str, str]) -> Plan | None:
    """The first shape that fits columns, if it uses all that the user names."""
    there = list(there)
    names = {name: column for name, column in columns.items() if column in there}
    for column, name in CANDIDATES.items():
        if column in there and name not in columns and name not in names and column not in columns.values():
            names[name] = column
    for form in FORMS:
        if all(name in names for name in form.needs) and all(n in form.names for n in columns if n in names):
            used = {name: names[name] for name in form.names if name in names}
            if used.get("prompt", "instruction") != "instruction" and "input" not in columns:
                used.pop("input", None)  # belongs to an instruction
            for better, worse in (("prompt", "instruction"), ("prompt", "messages"), ("instruction", "messages")):
                if better in used and worse in used and worse not in form.needs:
                    del used[worse]  # one of them is the prompt
            if not {"prompt", "instruction", "messages"} & set(used):
                used.pop("input", None)
            return Plan(form, used, _left(there, used) if form.adapt is not plain_text else ())
    return None


def _left(there: Iterable[str], used: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(column for column in there if column in TELLING and column not in used.values())


def _planner(main: Plan, columns: Mapping[str, str]) -> Callable[[tuple[str, ...]], Plan]:
    """Filled columns of a row → how it is read: as the source's rows are, or, if it has no column of theirs, by a shape
    of its own."""

    @lru_cache(maxsize=1000)
    def plan(filled: tuple[str, ...]) -> Plan:
        own = _plan(filled, columns)
        if own and all(name in own.names for name in main.form.needs):
            return own
        if own and own.form.adapt is not plain_text and not set(own.form.needs) & set(main.names):
            return own
        names = dict(main.names) | ({n: c for n, c in own.names.items() if n in main.form.names} if own else {})
        return Plan(main.form, names, _left(filled, names))

    return plan


def _reader(main: Plan, plan: Callable[[tuple[str, ...]], Plan]) -> Callable[[Row], Iterator[Found]]:
    expected = [name for name in ("scores", "ranks", "label") if name in main.names]

    def adapt(row: Row) -> Iterator[Found]:
        form, names, left = plan(_filled(row))
        for name in form.needs:
            if names[name] not in row:
                raise RowError(f"has no column '{names[name]}'{nearest(names[name], row)}")
        values = {name: None for name in expected if name in form.names}
        values |= {name: row.get(column) for name, column in names.items()}
        for name, value in values.items():
            if isinstance(value, str) and (found := read_written(value, name)) is not None:
                values[name] = found
                yield Remark(f"column '{names[name]}': list written as text is read as a list")
        if "label" in values:
            yield from judged(form.adapt(values), values["label"])
        else:
            yield from form.adapt(values)
        yield from _unused(row, values, left)

    return adapt


def _unused(row: Row, values: Mapping[str, Any], left: Iterable[str]) -> Iterator[Remark]:
    """What a row says in columns and fields that are not read."""
    turns = [m for value in values.values() if isinstance(value, (list, tuple, Mapping)) for m in _messages(value)]
    for column in left:
        value = row[column]
        if not _empty(value) and value not in values.values() and not any(value == m.get("content") for m in turns):
            yield Remark(f"column '{column}' is not used", unused=column)
    more = [m for m in turns if len(m) > 2]  # than role and content
    for field in FIELDS if more else ():
        if any(not _empty(m.get(field)) for m in more):
            yield Remark(f"field '{field}' of messages is not used")
    if any(isinstance(m.get(n), float) and m[n] not in (0, 1) for m in more for n in ("weight", "loss")):
        yield Remark("weight of a turn other than 0 and 1 counts as 1")
    system = values.get("system")
    if system and any(m.get("role", m.get("from")) == "system" for m in turns) and not any(
        system == m.get("content", m.get("value")) for m in turns
    ):  # fmt: skip
        yield Remark("column 'system' is not used: the messages have a system turn of their own")


def _messages(value: Any) -> list[Mapping[str, Any]]:
    return [value] if isinstance(value, Mapping) else [item for item in value if isinstance(item, Mapping)]


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


# --- words -----------------------------------------------------------------------------------------------------------


def _says(plan: Plan, rows: Sequence[Row]) -> str:
    """A shape in words: its kind and the columns that it reads."""
    form, used = plan.form, plan.names
    shapeless = not {"messages", "answers"} & set(form.needs)
    values = (row.get(c) for n, c in used.items() if n not in ("scores", "ranks", "history") for row in rows)
    kind = "conversational " if shapeless and any(isinstance(v, (list, tuple, dict)) for v in values) else ""
    says = f"{form.says}, if the label is true" if "label" in used else form.says
    order = ("prompt", "system", *form.names)
    shown = (name if name == used[name] else f"{name} from {used[name]}" for name in sorted(used, key=order.index))
    return f"{kind}{says}: {', '.join(shown)}"


def _unknown(there: Sequence[str], columns: Mapping[str, str]) -> str:
    """Why no shape fits."""
    for name, column in columns.items():
        rest = {n: c for n, c in columns.items() if n != name}
        if plan := _plan([c for c in there if c != column], rest):
            return f"has the columns for {plan.form.says}, which do not use --columns {name}={column}; leave it out"
    return (
        f"has the columns {', '.join(map(repr, there)) or 'none'}, which fit no known shape{_nearest_target(there)}; "
        "name them with --columns prompt=…,chosen=…,rejected=… or give --data-adapter file.py:function"
    )


def _nearest_target(there: Iterable[str]) -> str:
    for name in there:
        hint = nearest(name, list(CANDIDATES))
        if hint:
            return f" ('{name}'{hint.rstrip('?')})"
    return ""
