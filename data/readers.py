"""Files of rows: each kind is read one row at a time, with the place of each row.

Files are read here rather than guessed at by a table reader: a broken row is named by its file and line and can be
skipped, a CSV cell "NA" stays text, and memory does not grow with the file.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from data.example import LARGEST_TEXT, Placed, Row, RowError
from data.json_values import BLANKS, BrokenJSON, Values
from data.row_files import UNPACK, RowFile, unpacking
from rlhf.errors import DataError
from rlhf.file_signs import what_it_is
from rlhf.json_lines import JSONLine, LineError, read_json_lines

LARGEST_ROW = 4 * LARGEST_TEXT  # bytes
AT_ONCE = 500  # rows of a table
# Columns of a row: an object that has one of them is a row, although it also holds a list of objects.
ROW_NAMES = {
    *("prompt", "question", "instruction", "query", "input", "text", "messages", "conversations", "conversation"),
    *("chosen", "rejected", "context", "context_messages", "completions", "responses", "answers", "generations"),
    *("segments", "summaries"),
}
WRAPPED = ("data", "rows", "train", "examples", "instances", "items", "records")  # lists of rows, also in one line
OWN_SIGNS = {".parquet": "is a Parquet file", ".arrow": "is an Arrow"}  # of `what_it_is`


def file_rows(file: RowFile) -> Iterator[Placed]:
    """The rows of a file, each with its place inside it ("line 7"). Raises DataError for a file of something else."""
    try:
        if file.size() == 0:
            return
        with unpacking(file):
            other = what_it_is(file)
            if other and not other.startswith(OWN_SIGNS.get(file.kind, "nothing")):
                how = next(
                    (end for end, (how, _) in UNPACK.items() if other.startswith(f"is compressed with {how};")), ""
                )
                raise DataError(f"{file} {other}{f', or call it {file}{how}' if how and not file.packing else ''}")
            yield from READERS[file.kind](file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


# --- one function per kind: a file → (place in it, row or RowError) --------------------------------------------------


def _json(path: RowFile) -> Iterator[Placed]:
    """JSON lines, or one list of objects, or one object around such a list; either suffix is used for all of them."""
    lines = (line for line in read_json_lines(path, longest=LARGEST_ROW) if not line.blank)
    first, second = next(lines, None), next(lines, None)
    if first is None:
        return
    within = None
    if second is None or not _is_json(first):  # else the first line is a value of its own, as in JSON lines
        start = first.content.lstrip()[:1]
        within = "" if start == b"[" else _wrapper(path, first, alone=second is None) if start == b"{" else None
    if within is not None:
        yield from _list(path, within=within)
        return
    for line in read_json_lines(path, longest=LARGEST_ROW):
        if not line.blank:
            yield f"line {line.number}", _row_of(line)


def _is_json(line: JSONLine) -> bool:
    try:
        line.value()
    except LineError:
        return False
    return True


def _row_of(line: JSONLine) -> Row | RowError:
    try:
        return _object(line.value())
    except LineError as error:
        return RowError(str(error))


def _object(value: Any) -> Row | RowError:
    return value if isinstance(value, dict) else RowError(f"is not a JSON object but {type(value).__name__}")


def _values(file: TextIO) -> Values:
    return Values(file, longest=LARGEST_ROW)


def _open(path: RowFile, *, newline: str | None = None) -> TextIO:
    # Bytes that are not UTF-8 become lone surrogates, which the check of each row finds.
    return io.TextIOWrapper(path.open(), encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _list(path: RowFile, *, within: str) -> Iterator[Placed]:
    """The objects of a list: the file's only value, or what the only object of the file has under the key `within`."""
    with _open(path) as file:
        values = _values(file)
        number = 0
        try:
            if within:
                values.need("{")
                while values.value() != within:
                    values.need(":")
                    _pass(values)
                    values.need(",")
                values.need(":")
            for value in values.items():
                number += 1
                yield f"row {number}", RowError(values.wrong) if values.wrong else _object(value)
            if not within and values.peek():
                raise BrokenJSON("something follows the list", values.line)
        except BrokenJSON as error:
            yield f"row {number + 1}", RowError(f"{error}; what follows cannot be read")


def _pass(values: Values, found: Callable[[Any], None] = lambda value: None) -> None:
    """Go past a value; a list is not held in memory. `found` gets the value, or the first item of a list in a list."""
    if values.peek() != "[":
        found(values.value())
        return
    found([])
    for number, item in enumerate(values.items()):
        if number == 0:
            found([item])


def _wrapper(path: RowFile, first: JSONLine, *, alone: bool) -> str | None:
    """The key of the only list of objects, where a file is one object around it; None for JSON lines. `first` is the
    first line, `alone` says that there is no other.

    Raises DataError for an object that holds something else and is no row, since it spans several lines.
    """
    with _open(path) as file:
        values = _values(file)
        members: dict[str, Any] = {}
        try:
            _scan(values, members)
        except BrokenJSON:  # the rows are read as far as they can be, or else the first line is named
            last = list(members)[-1:]
            inside = bool(last) and _holds_rows(members[last[0]]) and not ROW_NAMES & members.keys()
            return last[0] if inside and (alone or values.line > first.number) else None
        ended = values.line
        if (following := values.peek()) and (ended == first.number or following != "{"):
            return None
        if following:
            raise DataError(
                f"{path} holds objects of several lines each; write each on a line of its own (jq -c . OLD > NEW)"
            )
    lists = [name for name, value in members.items() if _holds_rows(value)]
    known = ROW_NAMES & members.keys()
    row = alone and path.kind == ".jsonl" and len(members) > 1 and lists[:1] and lists[0] not in WRAPPED
    if len(lists) == 1 and not known and not row:
        return lists[0]
    if _holds_columns(members):
        raise DataError(
            f"{path} is one JSON object that holds {', '.join(members)}, not rows but the values of each column "
            "together; write one object a line (pandas: to_json(orient='records', lines=True))"
        )
    objects = all(isinstance(value, Mapping) and not {"role", "from"} & value.keys() for value in members.values())
    if alone and (row or known or not (lists or objects) or path.kind == ".jsonl" or not members):
        return None
    holds = f"several lists of objects ({', '.join(lists)})" if len(lists) > 1 else f"{', '.join(members) or 'nothing'}"
    raise DataError(
        f"{path} is one JSON object that holds {holds}, not rows; write a list of objects, or one object a line"
    )


def _scan(values: Values, members: dict[str, Any]) -> None:
    """Go through an object and put what it holds into `members`; of a list its first item, in a list."""
    values.need("{")
    more = not values.take("}")
    while more:
        name = str(values.value())
        values.need(":")
        _pass(values, lambda value, name=name: members.update({name: value}))
        more = not values.take("}")
        if more:
            values.need(",")


def _holds_columns(members: Mapping[str, Any]) -> bool:
    """Whether the members of an object (of a list its first item, in a list) are whole columns, as tables write them:
    a list or a mapping by numbers for each."""
    if {"columns", "data"} <= members.keys():
        return True
    lists = [
        isinstance(value, list) and value and isinstance(value[0], (str, int, float)) for value in members.values()
    ]
    numbered = [isinstance(value, Mapping) and "0" in value for value in members.values()]
    return len(members) > 1 and bool(ROW_NAMES & members.keys()) and (all(lists) or all(numbered))


def _holds_rows(value: Any) -> bool:
    """Whether a value is a list of objects that are not the messages of one row."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and not {"role", "from"} & first.keys()


class _Lines:
    """The lines of a file for a CSV reader, which can be given back. `record`: those of the record that is read."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._ahead = file, deque[str]()
        self.number, self.record = 0, list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._file)
        self.number += 1
        self.record.append(line)
        return line

    def give_back_all_but_one(self) -> None:
        self._ahead.extendleft(reversed(self.record[1:]))
        self.number -= len(self.record) - 1


def _csv(path: RowFile) -> Iterator[Placed]:
    csv.field_size_limit(LARGEST_ROW)
    with _open(path, newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, strict=True)  # a quote at a wrong place is an error, not part of a cell
        names: list[str] = []
        while True:
            lines.record.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if not names:
                    raise DataError(f"{path}: the header is not valid CSV: {error}") from None
                row = RowError(_open_quote(lines, str(error)))
                lines.give_back_all_but_one()
                yield f"line {lines.number}", row
                continue
            if cells is None:
                return
            if not names:
                _check_header(path, cells)
                names = cells
            elif len(cells) == len(names):
                yield f"line {lines.number}", dict(zip(names, cells, strict=True))
            elif cells:
                more = f" (it began in line {lines.number - len(lines.record) + 1})" if len(lines.record) > 1 else ""
                yield f"line {lines.number}", RowError(f"does not have the {len(names)} cells of the header{more}")


def _open_quote(lines: _Lines, error: str) -> str:
    """What is wrong with a record that is not CSV. One that takes in more lines has a quote without its end."""
    if len(lines.record) == 1:
        return f'is not valid CSV: {error}; write a quote in a cell as ""'
    end = "the end of the file" if error == "unexpected end of data" else f"line {lines.number}"
    return f'opens a quote that is not closed in this row (it would reach to {end}); write a quote in a cell as ""'


def _check_header(path: RowFile, names: list[str]) -> None:
    if names and names[0].lstrip(BLANKS)[:2] in ('{"', "{'", "[{", "{"):
        raise DataError(f"{path} holds JSON, not CSV; call it .jsonl or .json")
    if len(names) == 1:
        for mark, what in (("\t", "tabs"), (";", "semicolons"), ("|", "bars")):
            if mark in names[0]:
                raise DataError(f"{path} has {what} between its cells, not commas; save it with commas")
    _check_names(path, names)


def _arrow(path: RowFile) -> Iterator[Placed]:
    """A file of tables or a stream of them, which `datasets` writes."""
    import pyarrow as pa

    number = 0
    try:
        with path.open() as source:
            start = source.read(6)
            source.seek(0)
            if start == b"ARROW1":
                whole = pa.ipc.open_file(source)
                batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
            else:
                whole = pa.ipc.open_stream(source)
                batches = iter(whole)
            _check_names(path, whole.schema.names)
            for batch in batches:
                for start in range(0, batch.num_rows, AT_ONCE):
                    for row in _python_rows(batch.slice(start, AT_ONCE)):
                        number += 1
                        yield f"row {number}", row
    except (pa.ArrowInvalid, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable Arrow file (after row {number}): {_first_line(error)}") from error
    except OSError as error:  # of pyarrow, without a number: the end is missing
        if error.errno is not None:
            raise
        raise DataError(f"{path} is cut short (after row {number}): {_first_line(error)}") from error


def _check_names(path: RowFile, names: Sequence[str]) -> None:
    twice = next((name for name in names if name and list(names).count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns with the name {twice!r}; rename one")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["damaged"])[0]


def _parquet(path: RowFile) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with path.open() as source, pq.ParquetFile(source) as file:
            _check_names(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=AT_ONCE):
                for row in _python_rows(batch):
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowInvalid, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file (after row {number}): {_first_line(error)}") from error


def _python_rows(batch: Any) -> Iterator[Row | RowError]:
    """The rows of a table. A value that Python cannot hold (broken UTF-8, a date after 9999) costs its row alone."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield RowError(f"has a value that cannot be read: {error}")


READERS: dict[str, Callable[[RowFile], Iterator[Placed]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
