"""From `--data-path` to rows, and every way in which a file can be broken: file and row are named."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import readers
from data.config import SourceSettings
from data.contents import fingerprint, rows
from data.example import RowError
from data.row_files import RowFile
from data.sources import HubName, parse
from data.store import Reader
from rlhf.errors import DataError
from rlhf.json_lines import SAVE_AS_UTF8

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def problems(path: Path | str, **settings: Any) -> list[str]:
    """What reading a file to its end says of it, the closing advice aside."""
    try:
        list(Reader(parse(str(path)), SourceSettings(**settings)))
    except DataError as error:
        return [line for line in error.problems if "--skip-bad-rows" not in line]
    return []


# --- which source is meant -------------------------------------------------------------------------------------------


def test_a_weight_follows_the_last_colon(write) -> None:
    path = write("a.jsonl", [GOOD])
    assert [(parse(s).name, parse(s).weight) for s in (path, f"{path}:2", f"{path}:0.5")] == [
        (path, None),
        (path, 2.0),
        (path, 0.5),
    ]
    assert parse("Dahoas/rm-static:3").weight == 3.0
    with pytest.raises(DataError, match="the weight -1 must be 0 or more; write SOURCE:weight"):
        parse(f"{path}:-1")


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("Dahoas/rm-static", HubName("Dahoas/rm-static")),
        ("a/b/config", HubName("a/b", config="config")),
        ("a/b@v1.0#test", HubName("a/b", revision="v1.0", split="test")),
        ("a/b/c@0f1e#train[:10%]", HubName("a/b", "c", "0f1e", "train[:10%]")),
        ("wikitext/wikitext-2-raw-v1", HubName("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("squad_v2", HubName("rajpurkar/squad_v2")),
    ],
)
def test_hub_names(name: str, hub: HubName) -> None:
    assert parse(name).hub == hub


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.jsonl", "absent.jsonl does not exist"),
        ("./a/b", "./a/b does not exist"),
        ("nothing", "neither a file, a folder nor a hub name such as org/name"),
        ("no*thing/*.jsonl", r"matches no file that ends in \.jsonl"),
    ],
)
def test_what_is_no_source_is_said(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(spec)


def test_folders_and_globs(tmp_path: Path, write) -> None:
    """test.jsonl of a folder is what the folder holds out itself; "latest" and "contest" are not tests."""
    for name in ("f/train-1.jsonl", "f/deep/latest.jsonl", "f/contest.jsonl", "f/test.jsonl", "f/.hidden/a.jsonl"):
        write(name, [GOOD | {"prompt": name}])
    (tmp_path / "f" / "README.md").write_text("no data")
    source = parse(str(tmp_path / "f"))
    assert [Path(f.name).name for f in source.files] == ["contest.jsonl", "latest.jsonl", "train-1.jsonl"]
    assert [row["prompt"] for _, row in rows(source, held_out=True)] == ["f/test.jsonl"]  # type: ignore[index]
    assert [Path(f.name).name for f in parse(str(tmp_path / "f" / "*.jsonl")).files] == [
        "contest.jsonl", "test.jsonl", "train-1.jsonl",
    ]  # fmt: skip
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"a\.gz is compressed with gzip; unpack it first"):
        parse(str(tmp_path / "a.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without training files"):
        parse(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"README\.md: \.md is not one of \.jsonl"):
        parse(str(tmp_path / "f" / "README.md"))


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("test/part-0.jsonl", True),
        ("validation/en/part-0.jsonl", True),
        ("deep/eval/a.jsonl", True),
        ("dev/a.jsonl", True),
        ("my-valid-rows/a.jsonl", True),
        ("held-out/a.jsonl", True),
        ("evaluation.jsonl", True),
        ("TestSet/a.jsonl", True),
        ("evaldata.jsonl", True),
        ("devices/validity/testament.jsonl", False),
        ("default/test-00000-of-00001.jsonl", True),
        ("train/test-00000-of-00001.jsonl", True),
        ("test/train-00000-of-00001.jsonl", False),
        ("test/train/a.jsonl", False),
        ("train/part-0.jsonl", False),
        ("contest/latest.jsonl", False),
        ("developers/a.jsonl", False),
    ],
)
def test_names_of_folders_count_as_those_of_files(name: str, held_out: bool, tmp_path: Path, write) -> None:
    """train/part-0.jsonl and test/part-0.jsonl: only names of files were looked at, so test rows were trained on."""
    write("test-folder/f/plain.jsonl", [GOOD])
    path = RowFile(write(f"test-folder/f/{name}", [GOOD]))
    source = parse(str(tmp_path / "test-folder" / "f"))  # names above the folder that is given do not count
    assert (path in source.held_out_files) == held_out
    assert (path in source.files) != held_out


def test_a_folder_of_held_out_files_alone_is_refused(tmp_path: Path, write) -> None:
    write("f/test/a.jsonl", [GOOD])
    with pytest.raises(
        DataError, match=r"all files say that they are held out \(such as test/a.jsonl\); give the path"
    ):
        parse(str(tmp_path / "f"))
    assert parse(str(tmp_path / "f" / "test")).files  # this one is asked for by its own name


def test_the_home_of_nobody_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write) -> None:
    with pytest.raises(DataError, match="~no-such-user is the home of no user"):
        parse("~no-such-user/a.jsonl")
    write("a:2.jsonl", [GOOD])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("~/a:2.jsonl").weight is None


def test_a_fingerprint_is_of_the_content(write) -> None:
    a, b, c = write("a.jsonl", [GOOD]), write("b.jsonl", [GOOD]), write("c.jsonl", [GOOD, GOOD])
    assert fingerprint(parse(a)) == fingerprint(parse(b)) != fingerprint(parse(c))


# --- formats ---------------------------------------------------------------------------------------------------------


def test_all_formats_give_the_same_rows(tmp_path: Path, write) -> None:
    some = [{"prompt": f"q {i} é\n", "chosen": "NA", "rejected": '1,"x"'} for i in range(50)]
    (tmp_path / "a.json").write_text(json.dumps(some, indent=1), "utf-8")
    (tmp_path / "bom.json").write_text("\ufeff" + json.dumps(some), "utf-8")
    pq.write_table(pa.Table.from_pylist(some), tmp_path / "a.parquet")
    import csv

    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(some[0]))
        writer.writeheader()
        writer.writerows(some)
    write("a.jsonl", some)
    write("lines.json", some)
    for name in ("a.jsonl", "lines.json", "a.json", "bom.json", "a.parquet", "a.csv"):
        assert [row for _, row in rows(parse(str(tmp_path / name)))] == some, name


def test_a_list_is_decoded_piece_by_piece(tmp_path: Path) -> None:
    """Objects lie across the borders of what is read at a time, and one is larger than that."""
    some = [{"n": i, "text": "x" * (i % 977)} for i in range(2000)] + [{"n": -1, "text": "y" * 3_000_000}]
    (tmp_path / "a.json").write_text(json.dumps(some))
    assert [row for _, row in rows(parse(str(tmp_path / "a.json")))] == some


# --- broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q", "chosen": }', "line 3: is not valid JSON: expecting value at column 27"),
        ('{"prompt": "q"', "line 3: is not valid JSON: expecting ',' delimiter at column 15"),
        ("[1, 2]", "line 3: is not a JSON object but list"),
        ('{"prompt": "a\0b"}', "line 3: contains a NUL byte"),
        (json.dumps(GOOD | {"chosen": "a\0"}), "line 3: chosen contains a NUL byte"),
        (json.dumps(GOOD | {"chosen": "a\ud83d"}), "line 3: chosen is not Unicode text: it holds half of a surrogate"),
        ("[" * 100_000, "line 3: is not usable JSON"),
        ('{"prompt": "q", "chosen": "a"}', "line 3: has no column 'rejected'"),
        ('{"prompt": "q", "chosen": "a", "rejectd": "b"}', "has no column 'rejected'; did you mean 'rejectd'"),
        ('{"prompt": "q", "chosen": ["a"], "rejected": "b"}', "line 3: chosen .message 1. is text, not a .role"),
    ],
)
def test_a_broken_line_is_named(line: str, message: str, write) -> None:
    path = write("a.jsonl", [GOOD, "", line, GOOD])
    (found,) = problems(path)
    assert found.startswith(f"{path}, line 3: ")
    assert re.search(message, found), found
    assert problems(path, skip_bad_rows=True) == []


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    text = json.dumps(GOOD).encode()
    broken = text.replace(b'"a"', b'"caf\xe9"')
    (tmp_path / "a.jsonl").write_bytes(text + b"\n" + broken + b"\n")
    (tmp_path / "a.json").write_bytes(b"[" + text + b",\n" + broken + b"]")
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\nq,a,b\nq,caf\xe9,b\n")
    assert problems(tmp_path / "a.jsonl") == [
        f"{tmp_path}/a.jsonl, line 2: is not UTF-8 text (byte 31 of it); {SAVE_AS_UTF8}"
    ]
    for name, row in (("a.json", "row 2"), ("a.csv", "line 3")):
        (found,) = problems(tmp_path / name)
        assert found.startswith(f"{tmp_path}/{name}, {row}: chosen is not Unicode text: {SAVE_AS_UTF8}")


def test_a_gigantic_row_is_passed_over_without_reading_it_whole(write, monkeypatch) -> None:
    monkeypatch.setattr(readers, "LARGEST_ROW", 1000)
    path = write("a.jsonl", [GOOD, GOOD | {"chosen": "x" * 5000}, GOOD])
    assert problems(path) == [f"{path}, line 2: is longer than 1,000 bytes"]
    assert [isinstance(row, RowError) for _, row in rows(parse(path))] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "q", "chosen": "a", "rejected": "b"},\n {"prompt": }]', "row 2: is not valid JSON (line 2): "),
        ('[{"prompt": "q", "chosen": "a", "rejected": "b"},\n {"prompt": "q"', "row 2: is not valid JSON (line 2): "),
        ('[{"prompt": "q", "chosen": "a", "rejected": "b"}, 7]', "row 2: is not a JSON object but int"),
    ],
)
def test_a_broken_list_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    (found,) = problems(path)
    assert found.startswith(f"{path}, {message}")


def test_csv_rows_with_too_few_or_too_many_cells_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\n"two\nlines",a,b\nq,a\nq,a,b,c\n')
    assert problems(path) == [
        f"{path}, line 4: does not have the 3 cells of the header",
        f"{path}, line 5: does not have the 3 cells of the header",
    ]


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not a table")
    assert "is not a readable Parquet file" in problems(tmp_path / "a.parquet")[0]
    for name in ("a.jsonl", "a.json", "a.csv"):
        (tmp_path / name).write_text("\n" if name == "a.jsonl" else "")
        assert problems(tmp_path / name) == [f"{tmp_path}/{name} is empty: it has no rows"]
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\n")
    assert problems(tmp_path / "b.csv") == [f"{tmp_path}/b.csv is empty: it has no rows"]


def test_reading_stops_after_a_few_bad_rows_or_counts_them_all(write) -> None:
    path = write("a.jsonl", [GOOD, *[GOOD | {"prompt": ""}] * 30])
    reader = Reader(parse(path), SourceSettings())
    with pytest.raises(DataError) as caught:
        list(reader)
    assert len(caught.value.problems) == 6
    assert "5 or more; correct them, or leave them out with --skip-bad-rows" in caught.value.problems[-1]
    reader = Reader(parse(path), SourceSettings(skip_bad_rows=True))
    assert len(list(reader)) == 1
    assert reader.bad == {"prompt is empty": 30}


def test_a_file_of_bad_rows_alone_is_refused_even_when_they_may_be_skipped(write) -> None:
    path = write("a.jsonl", [GOOD | {"prompt": ""}] * 3)
    assert problems(path, skip_bad_rows=True)[0] == f"{path} has no row that can be used"


def test_an_adapter_that_fails_names_the_row(tmp_path: Path, write) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def f(row):\n    return 1 / row['n']\ndef g(row):\n    return [row]\n")
    path = write("a.jsonl", [{"n": 0}])
    assert problems(path, data_adapter=f"{code}:f") == [
        f"{path}, line 1: cannot be read (ZeroDivisionError: division by zero)"
    ]
    assert problems(path, data_adapter=f"{code}:g") == [
        f"{path}, line 1: the adapter gave dict instead of data.example.Example"
    ]
