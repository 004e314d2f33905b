"""A store is found by its content; what it says of a row's place is where the row is now."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data.config import DataSettings, SourceSettings
from data.encode import Encoder, Limits
from data.findings import of_repeats, of_source
from data.sources import parse
from data.store import Store, open_store
from data.tokens import encoded
from rlhf.errors import DataError
from rlhf.template import Template

ROWS = [{"prompt": f"q {i}", "chosen": "same" if i == 3 else "a", "rejected": "same"} for i in range(5)]


def write(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


@pytest.fixture
def open_(tmp_path: Path):
    def open_one(path: Path, *, skip_bad_rows: bool = False) -> Store:
        settings = SourceSettings(data_cache_dir=tmp_path / "cache", skip_bad_rows=skip_bad_rows)
        return open_store(parse(str(path)), settings)

    return open_one


def test_rows_of_a_moved_file_are_named_by_its_new_place(tmp_path: Path, open_) -> None:
    """The store held the file's old name, and every message about a row led to a file that was gone."""
    old = write(tmp_path / "old.jsonl")
    open_(old)
    new = old.rename(tmp_path / "new.jsonl")
    store = open_(new)
    assert len(list((tmp_path / "cache").glob("rows-*/"))) == 1  # it was not read again
    assert store.place(3) == f"{new}, line 4"
    assert store.record(3)["where"] == f"{new}, line 4"
    assert next(f for f in of_source(store) if f.places).places == (f"{new}, line 4",)


def test_two_files_with_the_same_content_keep_their_names(tmp_path: Path, open_) -> None:
    first, second = (open_(write(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    assert first.key == second.key
    assert [store.place(0) for store in (first, second)] == [
        f"{tmp_path}/a.jsonl, line 1",
        f"{tmp_path}/b.jsonl, line 1",
    ]
    places = next(f for f in of_repeats([first, second]) if "repeat another row" in f.text).places
    assert places[0] == f"{tmp_path}/a.jsonl, line 1"


def test_bad_rows_of_a_moved_file_are_named_by_its_new_place(tmp_path: Path, open_) -> None:
    old = tmp_path / "old.jsonl"
    old.write_text(f"{json.dumps(ROWS[0])}\n{{}}\n")
    open_(old, skip_bad_rows=True)
    new = old.rename(tmp_path / "new.jsonl")
    with pytest.raises(DataError) as caught:
        open_(new)
    assert caught.value.problems[0].startswith(f"{new}, line 2: ")


def test_a_row_that_cannot_be_rendered_is_named_by_its_new_place(tmp_path: Path, open_, template: Template) -> None:
    source = tmp_path / "f"
    write(source / "a.jsonl")
    (source / "b.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"}) + "\n")
    open_(source)
    store = open_(source.rename(tmp_path / "g"))

    class Refusing(Encoder):
        def _rendered(self, prompts, where, outcomes):
            raise DataError(where[-1])

    table = np.array([(0, row) for row in range(len(store.dataset))])
    with pytest.raises(DataError) as caught:
        encoded(
            [store], table, Refusing(template, Limits(99, 99), "prompts"), DataSettings(data_cache_dir=tmp_path / "c")
        )
    assert caught.value.problems == [f"{tmp_path}/g/b.jsonl, line 1"]


def test_a_file_whose_name_is_not_text_is_read(tmp_path: Path, open_) -> None:
    """A name such as b"caf\\xe9.jsonl", from an old disk or archive, ended in a UnicodeEncodeError."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    write(path)
    with path.open("a") as file:
        file.write("{}\n")
    store = open_(path, skip_bad_rows=True)
    assert store.place(4) == f"{path}, line 5"
    assert store.info["first_bad"][0].startswith(f"{path}, line 6: ")
    with pytest.raises(DataError) as caught:
        open_(path)
    assert caught.value.problems[0].startswith(f"{path}, line 6: ")
