"""From `--data-path` to rows: local files and hub datasets, read one row at a time with the place of each row.

Local files are read here rather than guessed at by a table reader: a broken row is named by its file and line and can
be skipped, a CSV cell "NA" stays text, and memory does not grow with the file.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.example import LARGEST_TEXT, RowError
from rlhf.errors import DataError

Row = Mapping[str, Any]
Placed = tuple[str, "Row | RowError"]  # ("train.jsonl, line 7", the row or what is wrong with it)

LARGEST_ROW = 4 * LARGEST_TEXT  # bytes
HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(#(?P<split>[\w.\[\]:%-]+))?"
)
# Two hub datasets are commonly called by a name without a "/".
SHORT_NAMES = {"wikitext": "Salesforce/wikitext", "squad_v2": "rajpurkar/squad_v2"}
HELD_OUT_NAME = re.compile(r"(^|[^a-z])(test|eval|valid|validation|val|dev|heldout|held_out)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class HubName:
    """`name[/config][@revision][#split]` of a hub dataset, `name` being `org/name`."""

    name: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """One `--data-path`: local files or a hub dataset, its weight, and files that it holds out itself, if any."""

    name: str
    weight: float | None = None
    files: tuple[Path, ...] = ()
    held_out_files: tuple[Path, ...] = ()
    hub: HubName | None = None


def parse(spec: str) -> Source:
    """`SOURCE[:weight]` as a Source. Raises DataError for a path that does not exist and a name that cannot be one."""
    name, weight = _weight(spec)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path, weight)
    if path.exists():
        if path.suffix.lower() not in READERS:
            raise DataError(f"{name}: {path.suffix or 'a file without a suffix'} is none of {', '.join(READERS)}")
        return Source(name, weight, files=(path,))
    hub = _hub_name(name)
    if any(c in name for c in "*?[") and not (hub and hub.split):
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        readable = tuple(p for p in found if p.suffix.lower() in READERS)
        if not readable:
            raise DataError(f"{name} matches no file that ends in {', '.join(READERS)}")
        return Source(name, weight, files=readable)
    if hub and path.suffix.lower() not in READERS and not name.startswith((".", "/", "~")):
        return Source(name, weight, hub=hub)
    raise DataError(f"{name} does not exist: neither a file, a folder nor a hub name such as org/name")


def _weight(spec: str) -> tuple[str, float | None]:
    name, colon, number = spec.rpartition(":")
    if not colon or not name or Path(spec).exists():
        return spec, None
    try:
        weight = float(number)
    except ValueError:
        return spec, None
    if not 0 <= weight < float("inf"):
        raise DataError(f"{spec}: the weight {number} must be 0 or more; write SOURCE:weight, for example {name}:2")
    return name, weight


def _hub_name(name: str) -> HubName | None:
    first, rest = re.match(r"([^/@#]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    found = HUB_NAME.fullmatch(SHORT_NAMES.get(first, first) + rest)
    return HubName(**found.groupdict()) if found else None


def _folder(name: str, path: Path, weight: float | None) -> Source:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in READERS)
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    held_out = [p for p in files if HELD_OUT_NAME.search(p.stem)]
    train = [p for p in files if p not in held_out]
    if not train:
        raise DataError(f"{name} is a folder without training files ({', '.join(READERS)})")
    return Source(name, weight, files=tuple(train), held_out_files=tuple(held_out))


def has_held_out(source: Source) -> bool:
    """Whether a source brings rows that it holds out itself: test files in a folder, a test split on the hub."""
    if source.hub:
        from data.hub import hub_splits

        return hub_splits(source.hub)[1] is not None
    return bool(source.held_out_files)


def rows(source: Source, *, held_out: bool = False) -> Iterator[Placed]:
    """The rows of a source with their places; a broken row comes as a RowError. Raises DataError for a broken file."""
    if source.hub:
        from data.hub import hub_rows  # `datasets` takes a second to import

        yield from hub_rows(source, held_out=held_out)
        return
    for path in source.held_out_files if held_out else source.files:
        yield from file_rows(path)


def file_rows(path: Path) -> Iterator[Placed]:
    found = False
    try:
        for where, row in READERS[path.suffix.lower()](path):
            found = True
            yield f"{path}, {where}", row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not found:
        raise DataError(f"{path} is empty: it has no rows")


def fingerprint(source: Source, *, held_out: bool = False) -> str:
    """A hash of the source's content: the same bytes give the same fingerprint wherever they lie."""
    if source.hub:
        from data.hub import hub_fingerprint

        return hub_fingerprint(source, held_out=held_out)
    digest = hashlib.blake2b(digest_size=16)
    for path in source.held_out_files if held_out else source.files:
        digest.update(path.suffix.lower().encode())
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


# --- readers: a file → (place in it, row or RowError) ----------------------------------------------------------------


def _json_object(text: bytes) -> Row | RowError:
    if b"\0" in text:
        return RowError("contains a NUL byte")
    try:
        row = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(f"is not UTF-8 text (byte {error.start + 1} of it)")
    except json.JSONDecodeError as error:
        return RowError(f"is not valid JSON: {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}")
    except RecursionError:
        return RowError("is not usable JSON: it is nested too deeply")
    return row if isinstance(row, dict) else RowError(f"is not a JSON object but {type(row).__name__}")


def _jsonl(path: Path) -> Iterator[Placed]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LARGEST_ROW + 1):
            number += 1
            if len(line) > LARGEST_ROW:
                while not line.endswith(b"\n") and (line := file.readline(LARGEST_ROW)):
                    pass
                yield f"line {number}", RowError(f"is longer than {LARGEST_ROW:,} bytes")
                continue
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield f"line {number}", _json_object(line.rstrip())


def _json(path: Path) -> Iterator[Placed]:
    """A list of objects, decoded one at a time; or JSON lines under this suffix."""
    with path.open("rb") as file:
        if file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
            yield from _jsonl(path)
            return
    decoder = json.JSONDecoder()
    # Bytes that are no UTF-8 survive as lone surrogates, which the check of each row finds.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        buffer, more, number, line = file.read(1 << 16), True, 0, 1
        cut = buffer.index("[") + 1
        while True:
            line += buffer.count("\n", 0, cut)
            buffer = buffer[cut:]
            start = len(buffer) - len(buffer.lstrip(" \t\r\n,"))
            try:
                if buffer[start : start + 1] == "]":
                    return
                row, cut = decoder.raw_decode(buffer, start)
            except (json.JSONDecodeError, RecursionError) as error:
                block = file.read(1 << 20) if more and len(buffer) < LARGEST_ROW else ""
                more = bool(block)
                if more:
                    buffer, cut = buffer + block, 0
                    continue
                # Behind a broken object nothing can be found again, so this ends the file.
                place = line + getattr(error, "lineno", 1) - 1
                yield f"row {number + 1}", RowError(f"is not valid JSON (line {place}): {getattr(error, 'msg', error)}")
                return
            number += 1
            if isinstance(row, dict):
                yield f"row {number}", row
            else:
                yield f"row {number}", RowError(f"is not a JSON object but {type(row).__name__}")


def _csv(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(LARGEST_ROW)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        records = iter(reader)
        while True:
            try:
                row = next(records, None)
            except csv.Error as error:
                yield f"line {reader.line_num}", RowError(f"is not valid CSV: {error}")
                return
            if row is None:
                return
            names = reader.fieldnames or []
            if None in row or None in row.values():
                row = RowError(f"does not have the {len(names)} cells of the header")
            yield f"line {reader.line_num}", row


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=500):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowInvalid, pa.ArrowException, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or ["damaged"])[0]
        raise DataError(f"{path} is not a readable Parquet file (after row {number}): {first}") from error


READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
