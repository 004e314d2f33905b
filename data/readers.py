"""Files of rows: each kind is read one row at a time, with the place of each row.

Files are read here rather than guessed at by a table reader: a broken row is named by its file and line and can be
skipped, a CSV cell "NA" stays text, and memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.example import LARGEST_TEXT, Placed, Row, RowError
from rlhf.errors import DataError
from rlhf.json_lines import BYTE_ORDER_MARK, JSONLine, LineError, read_json_lines

LARGEST_ROW = 4 * LARGEST_TEXT  # bytes


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


# --- one function per kind: a file → (place in it, row or RowError) --------------------------------------------------


def _json_lines(path: Path) -> Iterator[Placed]:
    for line in read_json_lines(path, longest=LARGEST_ROW):
        if not line.blank:
            yield f"line {line.number}", _row_of(line)


def _row_of(line: JSONLine) -> Row | RowError:
    try:
        return _object(line.value())
    except LineError as error:
        return RowError(str(error))


def _object(value: Any) -> Row | RowError:
    return value if isinstance(value, dict) else RowError(f"is not a JSON object but {type(value).__name__}")


def _json(path: Path) -> Iterator[Placed]:
    """A list of objects, decoded one at a time; or JSON lines under this suffix."""
    with path.open("rb") as file:
        if file.read(4096).removeprefix(BYTE_ORDER_MARK).lstrip()[:1] != b"[":
            yield from _json_lines(path)
            return
    decoder = json.JSONDecoder()
    # Bytes that are not UTF-8 become lone surrogates, which the check of each row finds.
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
            except (ValueError, RecursionError) as error:
                block = file.read(1 << 20) if more and len(buffer) < LARGEST_ROW else ""
                more = bool(block)
                if more:
                    buffer, cut = buffer + block, 0
                    continue
                # After a broken object the next one cannot be found, so reading ends here.
                place = line + getattr(error, "lineno", 1) - 1
                yield f"row {number + 1}", RowError(f"is not valid JSON (line {place}): {getattr(error, 'msg', error)}")
                return
            number += 1
            yield f"row {number}", _object(row)


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
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
