"""Files that people have: other forms of JSON, broken quotes, values that Python cannot hold, empty files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import json_values, readers
from data.announcement import say_empty
from data.config import SourceSettings
from data.contents import rows
from data.example import RowError
from data.preflight import look_at
from data.sources import parse
from data.store import Reader, open_store
from rlhf.errors import DataError

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
TEXT = json.dumps(GOOD)


def read(path: Path | str) -> list[tuple[str, Any]]:
    """The rows of a file, each with its place in it; a row that cannot be used is what is wrong with it."""
    found = rows(parse(str(path)))
    return [(p.inside, str(row) if isinstance(row, RowError) else row) for p, row in found]  # type: ignore[attr-defined]


def refusal(path: Path | str, **settings: Any) -> str:
    """The only line that reading says of a source that no setting makes usable."""
    with pytest.raises(DataError) as caught:
        list(Reader(parse(str(path)), SourceSettings(skip_bad_rows=True)))
    (line,) = caught.value.problems
    return line


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda some: some,
        lambda some: {"data": some},
        lambda some: {"version": "1.0", "meta": {"list": [1]}, "empty": [], "numbers": [1, 2], "rows": some, "n": 3},
    ],
    ids=["list", "one key", "several keys"],
)
def test_a_list_of_rows_may_be_wrapped(name: str, indent: int | None, wrap: Any, tmp_path: Path) -> None:
    """{"version": …, "data": [rows]} was one row without the columns of a row."""
    some = [GOOD | {"n": i} for i in range(5)]
    (tmp_path / name).write_text(json.dumps(wrap(some), indent=indent))
    assert read(tmp_path / name) == [(f"row {i + 1}", row) for i, row in enumerate(some)]


def test_a_wrapped_list_is_decoded_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "AT_ONCE", 7)
    some = [GOOD | {"text": "é]}\\n" * i} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps({"first": {"a": [{}]}, "data": some}, indent=2, ensure_ascii=False))
    assert [row for _, row in read(tmp_path / "a.json")] == some


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "q"}]},
        {"prompt": "q", "answers": [{"text": "a", "score": 1}]},
        {"prompt": "q", "chosen": "a"},
        {"id": 1, "dialog": [{"speaker": "A", "text": "hi"}]},
        {"id": 1, "body": {"messages": []}},
        {"translation": {"de": "a", "en": "b"}},
    ],
)
def test_one_row_alone_is_no_wrapped_list(row: dict[str, Any], tmp_path: Path) -> None:
    """The turns of a dialog under another name were taken for the rows of the file."""
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert read(tmp_path / "a.jsonl") == [("line 1", row)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"train": [GOOD], "test": [GOOD]}, indent=1), "several lists of objects (train, test), not rows"),
        (json.dumps({"prompt": ["q"], "chosen": ["a"]}, indent=1), "one JSON object that holds prompt, chosen, not"),
        (json.dumps({"train": [GOOD], "test": [GOOD]}), "several lists of objects (train, test), not rows"),
        (json.dumps({"prompt": {"0": "q"}, "chosen": {"0": "a"}}), "not rows but the values of each column together"),
        (json.dumps({"prompt": ["q", "p"], "chosen": ["a", "b"]}), "not rows but the values of each column together"),
        (json.dumps({"columns": ["prompt"], "index": [0], "data": [["q"]]}), "not rows but the values of each column"),
        (json.dumps({"1": GOOD, "2": GOOD}), "one JSON object that holds 1, 2, not rows"),
        ('{"data": {"train": [1]},\n"n": []}', "one JSON object that holds data, n, not rows"),
        (f"{json.dumps(GOOD, indent=1)}\n" * 2, "holds objects of several lines each; write each on a line of its own"),
    ],
)
def test_other_forms_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    assert message in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_broken_row_of_a_wrapped_list_is_named(indent: int | None, tmp_path: Path) -> None:
    text = json.dumps({"version": "1.0", "data": [GOOD] * 3}, indent=indent)
    cut = text[: text.rindex('"chosen"') + 9]
    (tmp_path / "a.json").write_text(cut)
    found = read(tmp_path / "a.json")
    assert found[:2] == [("row 1", GOOD), ("row 2", GOOD)]
    assert found[2][0] == "row 3"
    assert found[2][1].startswith(f"is not valid JSON (line {cut.count(chr(10)) + 1}): ")
    assert len(found) == 3


def test_a_list_in_the_first_line_is_a_line_like_others(tmp_path: Path) -> None:
    """It is a row that cannot be used, not the file's only value; the rows after it are read."""
    (tmp_path / "a.jsonl").write_text(f"[{TEXT}, {TEXT}]\n{TEXT}\n")
    assert read(tmp_path / "a.jsonl") == [("line 1", "is not a JSON object but list"), ("line 2", GOOD)]


DEEP = "[" * 100_000 + "]" * 100_000
ODD = {
    "a number of 5,000 digits": (f'"n": {"1" * 5000}', "is not usable JSON: it has a number of more than 4,300 digits"),
    "too deep": (f'"n": {DEEP}', "is not usable JSON: it is nested too deeply"),
    "a key twice": ('"prompt": "other"', "has the key 'prompt' twice in an object"),
    "a key twice, inside": ('"n": [{"k": 1, "k": 2}]', "has the key 'k' twice in an object"),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("form", ["lines", "list", "wrapped"])
def test_a_row_that_python_cannot_hold_is_named_and_can_be_skipped(what: str, form: str, tmp_path: Path) -> None:
    """In a list the rows after a number of 5,000 digits were lost, since the end of its row was not found."""
    extra, problem = ODD[what]
    odd = f"{TEXT[:-1]}, {extra}}}"
    forms = {
        "lines": "\n".join((TEXT, odd, TEXT)),
        "list": f"[{TEXT},\n{odd},\n{TEXT}]",
        "wrapped": f'{{"data": [{TEXT},\n{odd},\n{TEXT}]}}',
    }
    (tmp_path / "a.json").write_text(forms[form])
    unit = "line" if form == "lines" else "row"
    assert read(tmp_path / "a.json") == [(f"{unit} 1", GOOD), (f"{unit} 2", problem), (f"{unit} 3", GOOD)]


@pytest.mark.parametrize(
    "extra", ['"n": NaN', '"n": -Infinity', '"n": 1e999', f'"n": {2**70}', r'"n": "\ud800"', '"n": {}']
)
def test_odd_values_of_unused_columns_do_no_harm(extra: str, tmp_path: Path) -> None:
    """Arrow could hold neither a number beyond 64 bits nor half of a surrogate pair; only what is used is stored."""
    (tmp_path / "a.jsonl").write_text(f"{TEXT[:-1]}, {extra}}}\n{TEXT}\n")
    store = open_store(parse(str(tmp_path / "a.jsonl")), SourceSettings(data_cache_dir=tmp_path / "cache"))
    assert store.column("row_key")[0] == store.column("row_key")[1]


@pytest.mark.parametrize("margin", ["1e39", "1e400", "NaN", "1" + "0" * 400])
def test_a_margin_that_cannot_be_stored_is_named(margin: str, tmp_path: Path) -> None:
    """1e39 became infinite when it was stored as fp32, and with it the loss."""
    (tmp_path / "a.jsonl").write_text(f'{TEXT[:-1]}, "margin": 1}}\n{TEXT[:-1]}, "margin": {margin}}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: "):
        list(Reader(parse(str(tmp_path / "a.jsonl")), SourceSettings()))


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_an_open_quote_costs_its_own_row(tmp_path: Path) -> None:
    """It took in the rest of the file: with --skip-bad-rows the rows after it were gone without a word."""
    lines = [f"q{i},a{i},b{i}" for i in range(30)]
    lines[10], lines[20] = 'q10,"an open quote,b10', 'q20,"two\nlines, ""quoted""",b20'
    (tmp_path / "a.csv").write_text("\n".join(["prompt,chosen,rejected", *lines]))
    found = read(tmp_path / "a.csv")
    assert found[10][0] == "line 12"
    assert "opens a quote that is not closed in this row (it would reach to line 22)" in found[10][1]
    assert found[20] == ("line 23", {"prompt": "q20", "chosen": 'two\nlines, "quoted"', "rejected": "b20"})
    assert [row["prompt"] for place, row in found if place != "line 12"] == [f"q{i}" for i in range(30) if i != 10]
    (tmp_path / "b.csv").write_text('prompt,chosen,rejected\nq,a,b\nq,"a,b\nq,a,b\n')
    place, problem = read(tmp_path / "b.csv")[1]
    assert (place, "it would reach to the end of the file" in problem) == ("line 3", True)
    assert len(read(tmp_path / "b.csv")) == 3


def test_a_quote_inside_a_cell_costs_its_row(tmp_path: Path) -> None:
    """`"He said "hi" to me"` was read as `He said hi" to me"`."""
    (tmp_path / "a.csv").write_text('prompt,chosen\nq,"He said "hi" to me"\nq,a "quoted" word\n\nq,b\n')
    assert read(tmp_path / "a.csv") == [
        ("line 2", "is not valid CSV: ',' expected after '\"'; write a quote in a cell as \"\""),
        ("line 3", {"prompt": "q", "chosen": 'a "quoted" word'}),
        ("line 5", {"prompt": "q", "chosen": "b"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{TEXT}\n{TEXT}\n", "holds JSON, not CSV; call it .jsonl or .json"),
        ("prompt;chosen\nq;a\n", "has semicolons between its cells, not commas"),
        ("prompt\tchosen\nq\ta\n", "has tabs between its cells, not commas"),
        ("prompt,chosen,chosen\nq,a,b\n", "has two columns with the name 'chosen'; rename one"),
        ('prompt,"chosen\nq,a\n', "the header is not valid CSV"),
    ],
)
def test_a_header_that_is_none_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert message in refusal(tmp_path / "a.csv")


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_a_cell_that_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    """A date after the year 9999, in a column that nobody reads, was an OverflowError without a file or a row."""
    late = pa.array([0, 9 * 10**17, 0]).cast(pa.timestamp("ms"))
    broken = pa.Array.from_buffers(pa.string(), 3, [None, *pa.array([b"x", b"x", b"\xe9"]).buffers()[1:]])
    table = pa.table({**{name: [text] * 3 for name, text in GOOD.items()}, "late": late, "note": broken})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [place for place, _ in found] == ["row 1", "row 2", "row 3"]
    assert found[0][1]["chosen"] == "a"
    assert [text.startswith("has a value that cannot be read: ") for _, text in found[1:]] == [True, True]


def test_a_parquet_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1\n")
    assert "a.parquet is a Git LFS pointer" in refusal(tmp_path / "a.parquet")
    pq.write_table(pa.table([["q"], ["a"]], names=["prompt", "prompt"]), tmp_path / "b.parquet")
    assert "two columns with the name 'prompt'" in refusal(tmp_path / "b.parquet")


# --- files of something else, and empty ones -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (gzip.compress(TEXT.encode(), mtime=0), "is compressed with gzip"),
        (b"<!DOCTYPE html><html>", "is an HTML page"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_of_something_else_is_refused_with_the_plan(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (found,) = look_at([str(tmp_path / name)], SourceSettings(skip_bad_rows=True), stage=2)
    assert found.startswith(f"{tmp_path / name} {message}")


def test_held_out_files_are_looked_at_with_the_plan(tmp_path: Path) -> None:
    """A broken file in test/ was found when the run had begun."""
    (tmp_path / "test").mkdir()
    (tmp_path / "a.jsonl").write_text(TEXT)
    (tmp_path / "test" / "a.jsonl").write_text("{")
    found = look_at([str(tmp_path)], SourceSettings(), stage=2)
    assert found[0].startswith(f"{tmp_path}/test/a.jsonl, line 1: is not valid JSON")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_an_empty_file_among_others_is_left_out(suffix: str, tmp_path: Path) -> None:
    """A program that writes one file for each worker leaves empty ones; one of them made the folder useless."""
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / f"part-0.{suffix}").write_text("")
    (folder / "part-1.jsonl").write_text(TEXT)
    store = open_store(parse(str(folder)), SourceSettings(data_cache_dir=tmp_path / "cache"))
    assert store.info["empty"] == [str(folder / f"part-0.{suffix}")]
    assert store.place(0) == f"{folder}/part-1.jsonl, line 1"
    (folder / "part-1.jsonl").write_text("\n")
    assert refusal(folder) == f"{folder}: all 2 files are empty"
    assert refusal(folder / f"part-0.{suffix}") == f"{folder}/part-0.{suffix} is empty: it has no rows"


def test_empty_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say_empty("f", [])
    say_empty("f", ["f/a.jsonl"])
    say_empty("f", ["f/a.jsonl", "f/b.jsonl", "f/c.jsonl"])
    assert capsys.readouterr().out.splitlines() == [
        "f: f/a.jsonl is empty and left out",
        "f: f/a.jsonl and 2 more are empty and left out",
    ]


def test_what_comes_after_a_broken_object_of_a_list_is_not_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"[{TEXT}, {{]}}, {TEXT}]")
    (_, problem) = read(tmp_path / "a.json")[1]
    assert problem.startswith("is not valid JSON (line 1): ")
    assert problem.endswith("; what follows cannot be read")


def test_the_longest_row_holds_for_lists_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST_ROW", 100)
    monkeypatch.setattr(json_values, "AT_ONCE", 50)
    (tmp_path / "a.json").write_text(f'[{TEXT}, {{"prompt": "{"x" * 5000}"}}]')
    assert "is not valid JSON" in read(tmp_path / "a.json")[1][1]
