"""The rows of a source, read one after another: each file by its shape, with what is wrong and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from typing import Any

from data.adapters import KNOWN, adapter_for
from data.config import SourceSettings
from data.contents import rows
from data.example import Example, Place, Placed, Remark, Row, RowError
from data.kept import Kept, kept_json
from data.labels import BAD_ALONE, SCORED_ALONE, Scored, paired
from data.remarks import counted
from data.shapes import Shape
from data.sources import Source
from rlhf.errors import DataError

SHOWN = 5  # problems of one source that are listed
NAMED = 12  # columns that are not read and named
LOOK_AHEAD = 1000  # rows of a file by which it is recognised
REPEATED_PROMPT = 0.9  # share of responses that begin with their prompt, from which they do so by mistake
ENOUGH = 5  # responses before this share means something
NOTHING = Shape("no rows that can be read", lambda row: ())
DOUBLED = "response that begins with its prompt, so that the prompt is there twice; remove it from the responses"


class Reader:
    """The Examples of a source, one after another, with the place of each.

    `bad` counts what could not be used, `silent` the rows that gave no Example, `remarks` what else the user should
    know. Each file is recognised by its first rows. Raises DataError with the first few bad rows unless bad rows are
    skipped, and always when no row can be used. At most `limit` rows are read (for a look at the source before a run).
    With `kept` each Example has that of its row, and `columns` are the names of all columns.
    """

    def __init__(
        self,
        source: Source,
        settings: SourceSettings,
        *,
        held_out: bool = False,
        limit: int | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.source, self.settings, self.held_out, self.limit = source, settings, held_out, limit
        self.kept_of_rows, self.columns = kept, set[str]()
        self.shapes: list[Shape] = []
        self.read = self.kept = self.silent = self._answered = self._doubled = 0
        self.bad: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.noted: list[tuple[Place, str]] = []
        self.files: set[int] = set()  # that have rows

    @property
    def problems(self) -> list[str]:
        """The first few rows that cannot be used, each with what is wrong with it."""
        return [f"{place}: {what}" for place, what in self.noted]

    def __iter__(self) -> Iterator[tuple[Place, Example]]:
        for where, example in paired(self._read()):
            if isinstance(example, Scored):
                self.remarks[SCORED_ALONE] += 1
                example = example.plain(chosen=None)
            self.kept += 1
            self._look_at(example)
            yield where, example
        if self.noted and not self.lenient:
            count = f"{len(self.noted)}{' or more' if len(self.noted) >= SHOWN else ''}"
            raise DataError(*self.problems, correct_or_skip(self.source, count))
        if not self.kept:
            raise DataError(f"{self.source.name} has no row that can be used", *self.problems, *counted(self.remarks))
        if self._doubled >= max(ENOUGH, REPEATED_PROMPT * self._answered):
            self.remarks[DOUBLED] = self._doubled

    @property
    def says(self) -> str:
        """The shapes of the source's files, in words, with the columns that say nothing that is read."""
        said: dict[str, set[str]] = {}
        for shape in self.shapes:
            said.setdefault(shape.says, set()).update(shape.unread)
        kept = self.kept_of_rows
        return "; ".join(
            says + _unread(sorted(column for column in unread if not (kept and kept.reads(column))))
            for says, unread in said.items()
        )

    @property
    def mapped(self) -> bool:
        return any(shape.mapped for shape in self.shapes)

    @property
    def known(self) -> bool:
        return self.source.hub is not None and any(shape in KNOWN.values() for shape in self.shapes)

    @property
    def lenient(self) -> bool:
        """Bad rows are left out on request, and always in a known hub dataset, which the user cannot correct."""
        return self.settings.skip_bad_rows or self.known

    def _read(self) -> Iterator[tuple[Place, Example]]:
        for where, row, shape in self._recognised(rows(self.source, held_out=self.held_out)):
            if self.read == self.limit:
                break
            self.read += 1
            self.files.add(where.file)
            try:
                examples = self._examples(row, shape)
            except RowError as error:
                self.note(where, str(error))
            except Exception as error:  # an adapter, perhaps the user's, met an unexpected row
                self.note(where, f"cannot be read ({type(error).__name__}: {error})")
            else:
                self.silent += not examples
                yield from ((where, example) for example in examples)
            if len(self.noted) >= SHOWN and not self.lenient:
                break

    def _recognised(self, source_rows: Iterator[Placed]) -> Iterator[tuple[Place, Row | RowError, Shape]]:
        """Each row with the shape of its file. The user's own function gets the rows of all files in one stream."""
        for _, placed in groupby(source_rows, key=lambda p: 0 if self.settings.data_adapter else _place(p[0]).file):
            seen = list(islice(placed, LOOK_AHEAD))
            while seen and isinstance(seen[-1][1], RowError) and not _readable(seen) and (more := next(placed, None)):
                seen.append(more)
            shape = self._shape(seen)
            if shape not in self.shapes:
                self.shapes.append(shape)
            file_rows: Iterable[Placed] = chain(seen, placed)  # noqa: B031
            for where, row in shape.prepare(file_rows) if shape.prepare else file_rows:
                yield _place(where), row, shape

    def _shape(self, seen: Sequence[Placed]) -> Shape:
        readable = _readable(seen)
        if not readable and not self.settings.skip_bad_rows:
            raise DataError(*[f"{where}: {row}" for where, row in seen[:SHOWN]])
        if not readable:
            return NOTHING
        try:
            settings = self.settings
            found = [row for _, row in readable]
            return adapter_for(self.source, found, columns=settings.columns, data_adapter=settings.data_adapter)
        except RowError as error:
            raise DataError(f"{readable[0][0]}: {error}") from None

    def _examples(self, row: Row | RowError, shape: Shape) -> list[Example]:
        if isinstance(row, RowError):
            raise row
        found: Any = shape.adapt(row)
        items: list[Any] = [found] if isinstance(found, (Example, Remark)) else list(found or ())
        for item in items:
            if not isinstance(item, (Example, Remark)):
                raise RowError(f"the adapter gave {type(item).__name__} instead of data.example.Example")
        kept = self.kept_of_rows
        remarks = [item for item in items if isinstance(item, Remark)]
        self.remarks.update(r.text for r in remarks if not (kept and r.unused and kept.reads(r.unused)))
        examples = [item for item in items if isinstance(item, Example)]
        if kept is None:
            return examples
        self.columns.update(row)
        return [replace(example, kept=kept_json(row, example, kept)) for example in examples]

    def _look_at(self, example: Example) -> None:
        """Counts bad responses that are left out, and responses that repeat their prompt."""
        responses = [text.lstrip() for text in (example.chosen, example.rejected) if text is not None]
        if responses and example.chosen is None:
            self.remarks[BAD_ALONE] += 1
        elif responses:
            asked = example.prompt[-1]["content"].strip()
            self._answered += 1
            self._doubled += all(text.startswith(asked) and text.rstrip() != asked for text in responses)

    def note(self, place: Place, what: str) -> None:
        self.bad[what[:80]] += 1
        if len(self.noted) < SHOWN:
            self.noted.append((place, what))


def _unread(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - NAMED} more" if len(columns) > NAMED else ""
    return f" (not read: {', '.join(columns[:NAMED])}{more})" if columns else ""


def _readable(placed: Sequence[Placed]) -> list[tuple[str, Row]]:
    return [(where, row) for where, row in placed if not isinstance(row, RowError)]


def _place(where: str) -> Place:
    assert isinstance(where, Place), where
    return where


def correct_or_skip(source: Source, count: str) -> str:
    return f"{source.name}: rows that cannot be used: {count}; correct them, or leave them out with --skip-bad-rows"
