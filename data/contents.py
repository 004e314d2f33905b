"""The content of a source, files or a hub dataset: its rows, its own held-out rows, a hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from data.example import Place, Placed
from data.hub import hub_fingerprint, hub_rows, hub_splits
from data.readers import file_rows
from data.row_files import RowFile
from data.sources import Source
from rlhf.errors import DataError


def has_held_out(source: Source) -> bool:
    """Whether a source has held-out rows of its own: test files in a folder, a test split on the hub."""
    if source.hub:
        return hub_splits(source.hub)[1] is not None
    return bool(source.held_out_files)


def names(source: Source, *, held_out: bool = False) -> list[str]:
    """What messages call the parts of a source, by their numbers: its files, or the hub dataset."""
    if source.hub:
        return [source.name]
    return [file.name for file in _files(source, held_out)]


def rows(source: Source, *, held_out: bool = False) -> Iterator[Placed]:
    """The rows of a source, each with its `Place`; a broken row comes as a RowError.

    Raises DataError for a file of something else, and when no file has a row. Some may be empty: a program that writes
    a file for each of its workers leaves them.
    """
    found = False
    for number, name in enumerate(names(source, held_out=held_out)):
        inside = hub_rows(source, held_out=held_out) if source.hub else file_rows(RowFile(name))
        for where, row in inside:
            found = True
            yield Place(name, number, where), row
    if not found:
        what = names(source, held_out=held_out)
        raise DataError(
            f"{what[0]} is empty: it has no rows"
            if len(what) == 1
            else f"{source.name}: all {len(what)} files are empty"
        )


def fingerprint(source: Source, *, held_out: bool = False) -> str:
    """A hash of the source's content: the same bytes give the same fingerprint in any place. Of what is at an address,
    a hash of what its file system tells of it."""
    if source.hub:
        return hub_fingerprint(source, held_out=held_out)
    digest = hashlib.blake2b(digest_size=16)
    for file in _files(source, held_out):
        try:
            file.add_to(digest)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _files(source: Source, held_out: bool) -> tuple[RowFile, ...]:
    return source.held_out_files if held_out else source.files
