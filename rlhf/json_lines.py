"""JSON lines: files of one JSON value a line. Only this module decides how they are split, read and written.

A line ends with "\\n" and nothing else. `str.splitlines` also cuts at characters such as U+2028, which JSON may hold as
they are inside its strings, and would make two broken rows of a good one. A line does not include
what Windows programs add: a "\\r" before the "\\n", and a byte order mark at the start of the file.

Files are read one line at a time, so memory does not grow with the file. Imports no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlhf.files import write_text

SAVE_AS_UTF8 = (
    "the file may be in another encoding, such as Latin-1; save it as UTF-8 (iconv -f LATIN1 -t UTF-8 OLD > NEW)"
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineError(ValueError):
    """A line that holds no JSON value, in one clause ("is not valid JSON: …"); the file's reader adds its name and
    the line's number."""


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(…, object_pairs_hook=no_key_twice)`, which would take the last value of a repeated key. Raises
    LineError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise LineError(f"has the key {next(key for key in found if keys.count(key) > 1)!r} twice in an object")
    return found


@dataclass(frozen=True)
class JSONLine:
    """A line as it stands in its file: its number, counted from 1, and its bytes without their end.

    `limit` is set where the line has more bytes than that; then `content` is only its beginning.
    """

    number: int
    content: bytes
    limit: int | None = None

    @property
    def blank(self) -> bool:
        return self.limit is None and not self.content.strip()

    def value(self) -> Any:
        """The JSON value. Raises LineError when there is none."""
        if self.limit is not None:
            raise LineError(f"is longer than {self.limit:,} bytes")
        if b"\0" in self.content:
            raise LineError("contains a NUL byte")
        try:
            return json.loads(self.content.decode("utf-8"), object_pairs_hook=no_key_twice)
        except LineError:
            raise
        except UnicodeDecodeError as error:
            raise LineError(f"is not UTF-8 text (byte {error.start + 1} of it); {SAVE_AS_UTF8}") from None
        except json.JSONDecodeError as error:
            reason = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
            raise LineError(f"is not valid JSON: {reason}") from None
        except RecursionError:
            raise LineError("is not usable JSON: it is nested too deeply") from None
        except ValueError:  # the only other cause: Python does not convert longer numbers
            digits = sys.get_int_max_str_digits()
            raise LineError(f"is not usable JSON: it has a number of more than {digits:,} digits") from None


class Opens(Protocol):
    """A path, or what else gives the bytes of a file as a stream."""

    def open(self, mode: str, /) -> Any:
        """The stream, for the mode "rb"."""


def read_json_lines(path: Path | Opens, *, longest: int | None = None) -> Iterator[JSONLine]:
    """The lines of a file, blank ones included; a line of more than `longest` bytes is not read whole.

    Raises OSError when the file cannot be read, at the first line that is asked for.
    """
    with path.open("rb") as file:
        number = 0
        while content := file.readline(-1 if longest is None else longest + 1):
            number += 1
            too_long = longest is not None and len(content) > longest
            if too_long:
                rest = content
                while not rest.endswith(b"\n") and (rest := file.readline(longest)):
                    pass
            if number == 1:
                content = content.removeprefix(BYTE_ORDER_MARK)
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            yield JSONLine(number, content, longest if too_long else None)


def json_line(row: Any) -> str:
    """A row as a line of such a file, its end included; characters beyond ASCII are not escaped."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Replace `path` by a file of these rows, in one step."""
    write_text(path, "".join(map(json_line, rows)))
