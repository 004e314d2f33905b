"""Files of rows, wherever they are and however they are packed: what kind they are, and their bytes as a stream.

A file is here, or at an address that `fsspec` knows (`s3://bucket/train.jsonl.gz`). Compressed text is unpacked while
it is read.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf.errors import DataError

TEXT = (".jsonl", ".json", ".csv")
KINDS = (*TEXT, ".parquet", ".arrow")
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def _zstd(file: IO[bytes]) -> Any:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))  # type: ignore[arg-type]


UNPACK: dict[str, tuple[str, Callable[[IO[bytes]], Any]]] = {
    ".gz": ("gzip", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    ".zst": ("zstd", _zstd),
    ".bz2": ("bzip2", bz2.BZ2File),
    ".xz": ("xz", lzma.LZMAFile),
}
SAYS = f"{', '.join(KINDS)}, or text that is compressed ({', '.join(f'.jsonl{p}' for p in UNPACK)})"


def kind_of(name: str) -> tuple[str, str] | None:
    """The kind of a file by its name and how it is packed: (".jsonl", ".gz"), (".csv", ""); None for another file."""
    path = Path(name)
    packing = path.suffix.lower() if path.suffix.lower() in UNPACK else ""
    kind = (path.with_suffix("") if packing else path).suffix.lower()
    return (kind, packing) if kind in (TEXT if packing else KINDS) else None


@dataclass(frozen=True)
class RowFile:
    """A file of rows. `name` is its path or address, as messages call it."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path | None:
        """Where it is, if it is here."""
        return None if ADDRESS.match(self.name) else Path(self.name)

    @property
    def kind(self) -> str:
        found = kind_of(self.name)
        return found[0] if found else ""

    @property
    def packing(self) -> str:
        found = kind_of(self.name)
        return found[1] if found else ""

    def size(self) -> int:
        """Bytes as it is stored."""
        if self.path is not None:
            return self.path.stat().st_size
        with reaching(self.name):
            return int(_system(self.name)[0].size(_system(self.name)[1]) or 0)

    def open(self, mode: str = "rb") -> Any:
        """Its bytes, unpacked. Raises DataError for an address that cannot be opened, OSError for a path."""
        assert mode == "rb"
        stored = self._stored()
        return UNPACK[self.packing][1](stored) if self.packing else stored

    def _stored(self) -> Any:
        if self.path is not None:
            return self.path.open("rb")
        with reaching(self.name):
            system, path = _system(self.name)
            return system.open(path, "rb")

    def add_to(self, digest: hashlib.blake2b) -> None:
        """Add the content to a hash; for an address what its system tells, such as a time or a checksum."""
        digest.update(f"{self.kind}{self.packing}".encode())
        if self.path is None:
            with reaching(self.name):
                system, path = _system(self.name)
                digest.update(f"{system.size(path)} {system.ukey(path)}".encode())
            return
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)


@contextmanager
def unpacking(file: RowFile) -> Iterator[None]:
    """Errors of packed bytes as DataError."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(_damaged(file, error)) from error
    except OSError as error:  # those of zstd and bzip2 have no number
        if not file.packing or error.errno is not None:
            raise
        raise DataError(_damaged(file, error)) from error


def _damaged(file: RowFile, error: Exception) -> str:
    how = UNPACK[file.packing][0] if file.packing else "its packing"
    text = str(error)
    if isinstance(error, EOFError) or re.search(r"truncated|ended before|incomplete", text, re.IGNORECASE):
        return f"{file} is cut short: what is compressed with {how} has no end; copy or download it again"
    if re.search(r"not a gzip|unknown frame|prefix|invalid data stream|format not supported", text, re.IGNORECASE):
        return f"{file} is not compressed with {how}, as its name says; give it the name of what it holds"
    return f"{file} is damaged: it cannot be unpacked ({how}: {text}); copy or download it again"


# --- addresses -------------------------------------------------------------------------------------------------------


def is_address(name: str) -> bool:
    return bool(ADDRESS.match(name))


def at(address: str) -> tuple[str, list[str]]:
    """An address as its system writes it, and the files there: of a folder all in it, of a pattern all that match, else
    itself. Raises DataError."""
    with reaching(address):
        system, path = _system(address)
        if any(c in path for c in "*?["):
            found = system.glob(path)
        elif system.isdir(path):
            found = system.find(path)
        else:
            found = [path] if system.exists(path) else []
        names = sorted(system.unstrip_protocol(p) for p in found)
        whole = str(system.unstrip_protocol(path))
    if not names:
        raise DataError(f"{address} does not exist")
    return whole, names


def _system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(address)


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Whatever a file system raises (each its own) as DataError."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{address} cannot be opened: a package is missing ({reason})") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{address} cannot be opened: {reason}") from error
