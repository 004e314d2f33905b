"""The contract over files of other tools and of well-known datasets (tests/helpers/peers): a row is read as it is
documented, or refused by name; and what a row says and no stage reads is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import SourceSettings
from data.reading import Reader
from data.sources import parse
from rlhf.errors import DataError
from tests.helpers.peers import File, Read, files

FILES = files()
READ = [name for name, file in FILES.items() if not file.refused]
REFUSED = [name for name, file in FILES.items() if file.refused]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[Read], Reader]]:
    """`read(rows)` → what is read of a file of these rows, and the reader, which knows what is said of it."""
    path = tmp_path_factory.mktemp("peers") / "a.jsonl"

    def read_rows(rows: list[Row], columns: str = "") -> tuple[list[Read], Reader]:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        reader = Reader(parse(str(path)), SourceSettings(columns=columns))
        found: list[Read] = []
        for _, example in reader:
            prompt = " | ".join(f"{turn['role'][0]}:{turn['content']}" for turn in example.prompt)
            found.append((prompt, example.chosen, example.rejected))
        return found, reader

    return read_rows


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_as_it_is_documented(name: str, read) -> None:
    """29 of 109 such files were misread: scores and labels were dropped, so that bad answers were learned as good ones,
    and votes, histories, system turns and conversations of one line were lost."""
    file = FILES[name]
    found, reader = read(file.rows, file.columns)
    assert found == file.read
    said = list(reader.remarks)
    assert len(said) == len(file.remarks), said
    for remark in file.remarks:
        assert any(line.startswith(remark) for line in said), (remark, said)
    assert set().union(*(shape.unread for shape in reader.shapes)) == set(file.unread)
    assert all(column in reader.says for column in file.unread)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_by_name(name: str, read) -> None:
    file = FILES[name]
    with pytest.raises(DataError) as caught:
        read(file.rows, file.columns)
    place, _, line = caught.value.problems[0].partition(": ")
    assert place.endswith(("line 1", "line 2"))
    assert line.startswith(file.refused)
    assert "\n" not in line


@pytest.mark.parametrize("name", [name for name in REFUSED if FILES[name].hint])
def test_the_way_out_of_a_refusal_leads_to_a_right_reading(name: str, read) -> None:
    """Hints of refusals led to other refusals."""
    file = FILES[name]
    assert read(file.rows, file.hint)[0] == file.read


# --- properties ------------------------------------------------------------------------------------------------------


def outcome(read: Any, file: File, rows: list[Row]) -> tuple[Any, ...]:
    try:
        found, reader = read(rows, file.columns)
    except DataError as error:
        return tuple(error.problems)
    return found, reader.remarks, reader.says


def repeated(row: Row, column: str) -> bool:
    """Whether a column says nothing that the row does not say elsewhere."""
    rest = json.dumps({name: value for name, value in row.items() if name != column})
    value = row[column]
    return value in (None, "", [], {}, "[]") or json.dumps(value)[1:-1].strip() in rest


@pytest.mark.parametrize("name", READ)
def test_no_column_is_dropped_in_silence(name: str, read) -> None:
    """A file without one of its columns is read otherwise, or other things are said of it."""
    file = FILES[name]
    whole = outcome(read, file, file.rows)
    for column in dict.fromkeys(column for row in file.rows for column in row):
        if all(repeated(row, column) for row in file.rows if column in row):
            continue
        less = [{name: value for name, value in row.items() if name != column} for row in file.rows]
        assert outcome(read, file, less) != whole, column


ASKED = st.sampled_from(["prompt", "query", "question", "problem", "instruction", "Prompt", "input", "messages"])
GOOD, BAD = (
    st.sampled_from(["chosen", "chosen_response", "response"]),
    st.sampled_from(["rejected", "rejected_response"]),
)
ANSWER = st.sampled_from(["completion", "response", "generation", "output", "chosen"])
LABEL, SCORE = (
    st.sampled_from(["label", "kto_tag", "Label"]),
    st.sampled_from(["score", "reward", "rating", "helpfulness"]),
)
LIST = st.sampled_from(["answers", "responses", "completions", "generations"])
MORE = st.dictionaries(st.sampled_from(["system", "margin_", "id", "tools", "source", "reasoning"]), st.just("x"))


def question(column: str, number: int) -> Any:
    return [{"role": "user", "content": f"q {number}"}] if column == "messages" else f"q {number}"


@st.composite
def judged_rows(draw: Any) -> list[Row]:
    """Rows of one shape, under any of the names of its columns; bad answers hold the word BAD."""
    asked, more, rows = draw(ASKED), draw(MORE), []
    kind = draw(st.sampled_from(["pair", "label", "score", "list", "items", "sides"]))
    names = {"good": draw(GOOD), "bad": draw(BAD), "answer": draw(ANSWER), "label": draw(LABEL), "score": draw(SCORE)}
    if names["good"] == "response" and names["bad"] == "rejected":
        names["good"] = "chosen"
    stem, (one, two) = (
        draw(st.sampled_from(["response", "answer", "output"])),
        draw(st.sampled_from(["01", "12", "ab"])),
    )
    if asked == "messages":
        kind = draw(st.sampled_from(["pair", "sides"]))
        names |= {"good": "chosen", "bad": "rejected"}
    several = draw(LIST)
    for number in range(draw(st.integers(1, 4))):
        start = {asked: question(asked, number), **more}
        good, bad = f"good {number}", f"BAD {number}"
        first = draw(st.booleans())
        answers = [good, bad] if first else [bad, good]
        if kind == "pair":
            rows.append(start | {names["good"]: good, names["bad"]: bad})
        elif kind in ("label", "score"):
            worth = {good: True, bad: False} if kind == "label" else {good: 3.5, bad: draw(st.integers(-3, 3))}
            rows += [start | {names["answer"]: text, names[kind]: worth[text]} for text in answers]
        elif kind == "list":
            rows.append(start | {several: answers, "scores": [2 * (text == good) for text in answers]})
        elif kind == "items":
            rows.append(start | {several: [{"response": text, "rank": 1 + (text == bad)} for text in answers]})
        else:
            winner = one if first else two
            rows.append(start | {f"{stem}_{one}": answers[0], f"{stem}_{two}": answers[1], "winner": winner})
    return rows


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=judged_rows())
def test_a_bad_answer_is_never_learned_whatever_its_columns_are_called(rows: list[Row], read) -> None:
    """Answers with a false label or a low score were learned as demonstrations."""
    found, _ = read(rows)
    assert all("BAD" not in (chosen or "") for _, chosen, _ in found)
    assert all("BAD" in rejected for _, _, rejected in found if rejected is not None)
    assert any(chosen and rejected for _, chosen, rejected in found)


TEXTS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "answers",
    "messages",
    "system",
    "history",
    "label",
    "score",
    "tools",
)
VALUES = st.sampled_from(
    [None, "", "q", "Human: q", 0, 1, 2.5, True, float("nan"), [], ["a"], ["a", "b"], [1], [None], {}, {"text": "a"},
     [["q", "r"]], [{"role": "user", "content": "q"}], [{"role": "user", "content": "q"}, {"role": "assistant"}],
     [{"role": "assistant", "content": "a"}], [{"from": "human", "value": None}], [{"content": [{"type": "image"}]}]]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(TEXTS), VALUES, min_size=1), min_size=1, max_size=3))
def test_any_row_is_read_or_refused_in_one_line(rows: list[Row], read) -> None:
    """An unforeseen value used to end in the words of a Python error ("cannot be read (TypeError: …)")."""
    try:
        read(rows)
    except DataError as error:
        for line in error.problems:
            assert "\n" not in line
            assert "cannot be read (" not in line, line
