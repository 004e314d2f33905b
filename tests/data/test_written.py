"""Lists that a CSV file holds as text."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data.config import SourceSettings
from data.example import RowError
from data.reading import Reader
from data.sources import parse
from data.written import read_written

TALK = [{"role": "user", "content": "it's a \\d?"}, {"role": "assistant", "content": "yes\n"}]


@pytest.mark.parametrize("written", [json.dumps(TALK), str(TALK), f" {TALK} "])
def test_messages_written_as_text_are_read(written: str) -> None:
    for name in ("messages", "prompt", "chosen", "rejected"):
        assert read_written(written, name) == TALK
    assert read_written(str(TALK[0]), "chosen") == TALK[0]


@pytest.mark.parametrize(
    ("written", "name", "expected"),
    [
        ("['a', \"b\"]", "answers", ["a", "b"]),
        ("[nan, 1.0]", "scores", [None, 1.0]),
        ("[NaN, null, 2]", "scores", [None, None, 2]),
        ('[["q", "a"]]', "history", [["q", "a"]]),
    ],
)
def test_other_lists_are_read(written: str, name: str, expected: list[Any]) -> None:
    assert read_written(written, name) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[1, 2]", "prompt"),
        ("['a', 'b']", "chosen"),
        ('{"content": "JSON that was asked for"}', "chosen"),
        ('[{"content": "a list that was asked for"}]', "chosen"),
        ('{"role": "user", broken', "chosen"),
        ("hello", "messages"),
        ("[{'role': 'user', 'content': 'q'}]", "system"),
    ],
)
def test_text_stays_text(text: str, name: str) -> None:
    assert read_written(text, name) is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]", "chosen"),
        ("[{'role': 'user', 'content': 'q'", "messages"),
        ("['a' 'b']", "answers"),  # Python would read one text, "ab"
        ("[1. 2.]", "scores"),
        ("[" * 100_000, "answers"),
        ("__import__('os')", "messages"),
    ],
)
def test_what_looks_like_a_list_and_cannot_be_read_is_refused(written: str, name: str) -> None:
    if written.startswith("_"):
        assert read_written(written, name) is None
        return
    with pytest.raises(RowError, match=f"{name} looks like a list written as text .*save the rows as JSON lines"):
        read_written(written, name)


def test_a_table_of_conversations(tmp_path: Path) -> None:
    """They were learned as text, brackets and all."""
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerows([[str(TALK[:1]), str(TALK[1:]), "no"]] * 2)
    reader = Reader(parse(str(path)), SourceSettings())
    (example, _) = [example for _, example in reader]
    assert (list(example.prompt), example.chosen, example.rejected) == (TALK[:1], "yes\n", "no")
    what = "column '{}': list written as text is read as a list"
    assert reader.remarks == {what.format("prompt"): 2, what.format("chosen"): 2}
