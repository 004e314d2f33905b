"""A JSON file that is one list or one object, decoded value by value: memory holds the longest value, not the file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

BLANKS = " \t\r\n"
AT_ONCE = 1 << 20  # characters
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|["\[\]{}]', re.DOTALL)


class BrokenJSON(ValueError):
    """What is wrong with the JSON, in one clause, and the line of the file. What comes after it cannot be found."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(f"is not valid JSON (line {line}): {problem}")


class Values:
    """Reads `file` as a sequence of values and marks (`[`, `,`, `}`), in the order in which the caller asks.

    `wrong` says what is wrong with the last value although its end is known, or is empty. A value of more than
    `longest` characters is taken for a broken one.
    """

    def __init__(self, file: TextIO, *, longest: int) -> None:
        self.file, self.longest, self.wrong = file, longest, ""
        self._buffer, self._at, self._more, self._lines = "", 0, True, 1
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in BLANKS:
                    return self._buffer[self._at]
                self._at += 1
            if not self._refill():
                return ""

    def take(self, mark: str) -> bool:
        """Go past `mark` if it comes next."""
        found = self.peek() == mark
        self._at += found
        return found

    def need(self, mark: str) -> None:
        if not self.take(mark):
            raise BrokenJSON(f"expecting '{mark}'", self.line)

    def value(self) -> Any:
        """The next value. Raises BrokenJSON."""
        self.peek()
        while True:
            self.wrong = ""
            try:
                value, self._at = self._decoder.raw_decode(self._buffer, self._at)
                return value
            except RecursionError:
                self._skip()
                self.wrong = "is not usable JSON: it is nested too deeply"
                return {}
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at < self.longest and self._refill():
                    continue
                line = self._lines + self._buffer.count("\n", 0, error.pos)
                raise BrokenJSON(f"{error.msg[:1].lower()}{error.msg[1:]}", line) from None

    def items(self) -> Iterator[Any]:
        """The items of the list that comes next, until its end."""
        self.need("[")
        if self.take("]"):
            return
        while True:
            yield self.value()
            if self.take("]"):
                return
            self.need(",")
            if self.take("]"):  # a comma after the last item
                return

    @property
    def line(self) -> int:
        return self._lines + self._buffer.count("\n", 0, self._at)

    def _refill(self) -> bool:
        block = self.file.read(AT_ONCE) if self._more else ""
        self._more = bool(block)
        if self._more:
            self._lines += self._buffer.count("\n", 0, self._at)
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return self._more

    def _skip(self) -> None:
        """Go past a value that is too deep to be decoded, by counting its brackets."""
        depth, begun = 0, self.line
        while True:
            found = _TOKEN.search(self._buffer, self._at)
            if found is None or found[0] == '"':  # a string that goes on beyond what was read
                self._at = len(self._buffer) if found is None else found.start()
                if len(self._buffer) - self._at > self.longest or not self._refill():
                    raise BrokenJSON("a value that is nested too deeply has no end", begun)
                continue
            self._at = found.end()
            depth += (found[0] in "[{") - (found[0] in "]}")
            if depth == 0:
                return

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.wrong = f"has the key {next(key for key in found if keys.count(key) > 1)!r} twice in an object"
        return found

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # Python does not convert longer numbers
            most = sys.get_int_max_str_digits()
            self.wrong = f"is not usable JSON: it has a number of more than {most:,} digits"
            return 0
