"""From `--data-path` to sources: which files or which hub dataset is meant, and with what weight. Reads no rows."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from data.readers import READERS
from rlhf.errors import DataError
from rlhf.file_signs import what_it_is
from rlhf.files import expand_user

HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(#(?P<split>[\w.\[\]:%-]+))?"
)
# Two hub datasets are commonly called by a name without a "/".
SHORT_NAMES = {"wikitext": "Salesforce/wikitext", "squad_v2": "rajpurkar/squad_v2"}
# Words in the names of files and folders that say what their rows are for.
_HELD_OUT = "tests?|testing|evals?|evaluation|valid|validation|val|dev|held[-_ ]?out|hold[-_ ]?out"
_WORD = "(^|[^a-z])({})(set|data|split)?([^a-z]|$)"
HELD_OUT_NAME = re.compile(_WORD.format(_HELD_OUT), re.IGNORECASE)
TRAIN_NAME = re.compile(_WORD.format("train|training"), re.IGNORECASE)


@dataclass(frozen=True)
class HubName:
    """`name[/config][@revision][#split]` of a hub dataset, `name` being `org/name`."""

    name: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """One `--data-path`: local files or a hub dataset, its weight, and its own held-out files, if any."""

    name: str
    weight: float | None = None
    files: tuple[Path, ...] = ()
    held_out_files: tuple[Path, ...] = ()
    hub: HubName | None = None


def parse(spec: str) -> Source:
    """`SOURCE[:weight]` as a Source. Raises DataError for a path that does not exist and a name that cannot be one."""
    name, weight = _weight(spec)
    path = _path(name)
    if path.is_dir():
        return _folder(name, path, weight)
    if path.exists():
        if path.suffix.lower() not in READERS and (other := what_it_is(path)):
            raise DataError(f"{name} {other}")
        if path.suffix.lower() not in READERS:
            raise DataError(f"{name}: {path.suffix or 'a file without a suffix'} is not one of {', '.join(READERS)}")
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


def _path(name: str) -> Path:
    try:
        return expand_user(Path(name))
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def _weight(spec: str) -> tuple[str, float | None]:
    name, colon, number = spec.rpartition(":")
    if not colon or not name or _path(spec).exists():
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


def is_held_out_name(path: Path) -> bool:
    """Whether a file of a folder is held out: its own name says it (test-00000-of-00001.parquet), or else the nearest
    folder that names a split (test/part-0.jsonl, test/en/part-0.jsonl)."""
    for name in (path.stem, *reversed(path.parts[:-1])):
        if HELD_OUT_NAME.search(name):
            return True
        if TRAIN_NAME.search(name):
            return False
    return False


def _folder(name: str, path: Path, weight: float | None) -> Source:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in READERS)
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    held_out = [p for p in files if is_held_out_name(p.relative_to(path))]
    train = [p for p in files if p not in held_out]
    if held_out and not train:
        raise DataError(
            f"{name}: the names of all files say that they are held out (such as {held_out[0].relative_to(path)}); "
            "give the path of a file to train on it"
        )
    if not train:
        raise DataError(f"{name} is a folder without training files ({', '.join(READERS)})")
    return Source(name, weight, files=tuple(train), held_out_files=tuple(held_out))
