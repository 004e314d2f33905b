"""JSON lines: lines end with "\\n" alone, are read one at a time, and every reader of such files goes by that."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.contents import rows
from data.sources import parse
from rlhf.evaluate.evaluation import read_prompts
from rlhf.json_lines import LineError, json_line, read_json_lines, write_json_lines
from rlhf.metrics import read_metrics
from step3_ppo.rollout_files import FIELDS, read_rollouts


def test_lines_end_with_a_line_feed_alone(tmp_path: Path) -> None:
    """A carriage return before it and a byte order mark at the start of the file, but there alone, are left out."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n "b\rc" \n\xef\xbb\xbf3\r\r\nlast')
    assert [(line.number, line.content) for line in read_json_lines(path)] == [
        (1, b'{"a": 1}'),
        (2, b""),
        (3, b' "b\rc" '),
        (4, b"\xef\xbb\xbf3\r"),
        (5, b"last"),
    ]
    assert [line.number for line in read_json_lines(path) if line.blank] == [2]
    path.write_bytes(b"")
    assert list(read_json_lines(path)) == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    some: list[Any] = [{"text": "a\u2028b\u2029c\x85d\x0b\x1c\n\r é 🙂"}, [1.5, None], "x"]
    write_json_lines(tmp_path / "a.jsonl", iter(some))
    assert [line.value() for line in read_json_lines(tmp_path / "a.jsonl")] == some
    assert (tmp_path / "a.jsonl").read_bytes() == "".join(map(json_line, some)).encode()
    assert json_line({"a": "é"}) == '{"a": "é"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": }', "is not valid JSON: expecting value at column 7"),
        (b'{"a": "\xe9"}', r"is not UTF-8 text \(byte 8 of it\)"),
        (b'{"a": "\0"}', "contains a NUL byte"),
        (b"[" * 100_000, "is not usable JSON: it is nested too deeply"),
        (b"1" * 5000, "is not usable JSON: it has a number of more than 4,300 digits"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "has the key 'c' twice in an object"),
        (b'"' + b"x" * 9000 + b'"', "is longer than 8,000 bytes"),
        (b" " * 9000, "is longer than 8,000 bytes"),
    ],
)
def test_what_is_wrong_with_a_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" + content + b"\n3\n")
    longest = 8000 if b"[" not in content else None
    first, broken, last = read_json_lines(path, longest=longest)
    with pytest.raises(LineError, match=message):
        broken.value()
    assert not broken.blank
    assert (first.value(), last.value(), last.number) == (1, 3, 3)


@pytest.mark.parametrize("longest", [None, 1000])
def test_memory_does_not_grow_with_the_file(longest: int | None, tmp_path: Path) -> None:
    """Nor with a line that is longer than a reader wants."""
    path = tmp_path / "a.jsonl"
    path.write_bytes((b'"' + b"x" * 900 + b'"\n') * 10_000 if longest is None else b"x" * 10_000_000)
    tracemalloc.start()
    count = sum(1 for _ in read_json_lines(path, longest=longest))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == (10_000 if longest is None else 1)
    assert peak < 500_000


SPLIT = "First line\u2028second line\x85third"
ROW: dict[str, Any] = {"prompt": SPLIT, "step": 1} | dict.fromkeys(FIELDS - {"prompt"})


@pytest.mark.parametrize(
    "read",
    [
        lambda path: [asked.text for asked in read_prompts(path)],
        lambda path: [row["prompt"] for row in read_metrics(path)],
        lambda path: [row["prompt"] for row in read_rollouts(path)],
        lambda path: [row["prompt"] for _, row in rows(parse(str(path)))],  # type: ignore[index]
    ],
    ids=["evaluation", "metrics", "rollouts", "data"],
)
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_line_separator_in_a_prompt_does_not_cut_its_row(
    read: Callable[[Path], list[str]], start: str, tmp_path: Path
) -> None:
    """JSON leaves U+2028 as it is in a string and str.splitlines() cuts there: a good file of prompts was refused as
    broken JSON by the evaluation, although the same file had been trained on."""
    path = tmp_path / "a.jsonl"
    path.write_text(start + f"{json.dumps(ROW, ensure_ascii=False)}\n" * 2, encoding="utf-8")
    assert read(path) == [SPLIT, SPLIT]
