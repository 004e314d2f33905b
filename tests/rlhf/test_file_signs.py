"""A file of something else is named for what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.file_signs import lfs_pointer, what_it_is

ROW = json.dumps({"prompt": "q", "chosen": "a"}) + "\n"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 123456\n".encode()


def zipped() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("a.jsonl", ROW)
    return target.getvalue()


def tarred() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(ROW)
        file.addfile(member, io.BytesIO(ROW.encode()))
    return target.getvalue()


def table() -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["q"]}), target)
    return target.getvalue()


def arrow(new: str) -> bytes:
    target = io.BytesIO()
    one = pa.table({"prompt": ["q"]})
    with getattr(pa.ipc, new)(target, one.schema) as writer:
        writer.write_table(one)
    return target.getvalue()


FILES = {
    "Git LFS pointer": POINTER,
    "git-annex pointer": b"/annex/objects/SHA256E-s12--0.jsonl\n",
    "gzip": gzip.compress(ROW.encode(), mtime=0),
    "zstd": bytes(pa.compress(ROW.encode(), codec="zstd", asbytes=True)),
    "bzip2": bz2.compress(ROW.encode()),
    "xz": lzma.compress(ROW.encode()),
    "zip archive": zipped(),
    "tar archive": tarred(),
    "Parquet file": table(),
    "Arrow file": arrow("new_file"),
    "Arrow stream": arrow("new_stream"),
    "HTML page": b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "UTF-16": ROW.encode("utf-16"),
    "UTF-16LE": ROW.encode("utf-16-le"),
    "UTF-16BE": f"prompt,chosen\n{ROW}".encode("utf-16-be"),
    "UTF-32": ROW.encode("utf-32"),
    "UTF-32LE": ROW.encode("utf-32-le"),
    "UTF-32BE": ROW.encode("utf-32-be"),
}


@pytest.mark.parametrize("what", FILES)
def test_other_files_are_named(what: str, tmp_path: Path) -> None:
    """A Git LFS pointer "is not valid JSON: expecting value at column 1", which sent people to look for a bad row."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(FILES[what])
    assert re.search(rf"(is|an?|with) {what}\b", str(what_it_is(path)))
    assert lfs_pointer(path) == (what == "Git LFS pointer")


@pytest.mark.parametrize(
    "content",
    [
        ROW.encode(),
        b"\xef\xbb\xbf" + ROW.encode(),
        '{"prompt": "你好"}'.encode(),
        b'{"prompt": "caf\xe9"}',
        b"prompt,chosen\nq,a\n",
        b'[\n {"text": "<html>"}]',
        b"",
        b"\n",
        b"\0\0",
    ],
)
def test_text_is_not(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert what_it_is(path) is None
    assert what_it_is(tmp_path / "absent") is None
    assert not lfs_pointer(tmp_path / "absent")
