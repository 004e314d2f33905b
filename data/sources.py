"""From `--data-path` to sources: which files or which hub dataset is meant, and with what weight. Reads no rows.

Files are here or at an address (`s3://bucket/rows.jsonl`); a folder may be one that `datasets` saved.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from data.row_files import SAYS, RowFile, at, is_address, kind_of
from rlhf.errors import DataError
from rlhf.file_signs import what_it_is
from rlhf.files import expand_user

HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(#(?P<split>[\w.\[\]:%-]+))?"
)
# Two hub datasets are commonly called by a name without a "/".
SHORT_NAMES = {"wikitext": "Salesforce/wikitext", "squad_v2": "rajpurkar/squad_v2"}
HELD_OUT_SPLITS = ("test", "validation", "eval", "dev")
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
    files: tuple[RowFile, ...] = ()
    held_out_files: tuple[RowFile, ...] = ()
    hub: HubName | None = None


def parse(spec: str) -> Source:
    """`SOURCE[:weight]` as a Source. Raises DataError for a path that does not exist and a name that cannot be one."""
    name, weight = _weight(spec)
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    if is_address(name):
        return _address(name, weight)
    path = _path(name)
    if path.is_dir():
        return _folder(name, path, weight)
    if path.exists():
        if not kind_of(name) and (other := what_it_is(path)):
            raise DataError(f"{name} {other}")
        if not kind_of(name):
            raise DataError(f"{name}: {path.suffix or 'a file without a suffix'} is not one of {SAYS}")
        return Source(name, weight, files=(RowFile(str(path)),))
    hub = _hub_name(name)
    if any(c in name for c in "*?[") and not (hub and hub.split):
        found = sorted(glob.glob(str(path), recursive=True))
        readable = tuple(RowFile(p) for p in found if kind_of(p))
        if not readable:
            raise DataError(f"{name} matches no file that ends in {SAYS}")
        return Source(name, weight, files=readable)
    if hub and not kind_of(name) and not name.startswith((".", "/", "~")):
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
    if (path / SPLITS).is_file():
        return _saved_splits(name, path, weight)
    files = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p.name))
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    saved = {p.parent: _saved_files(p.parent) for p in files if p.name == STATE and (p.parent / INFO).is_file()}
    files = [p for p in files if p.name in saved.get(p.parent, [p.name])]
    return _divided(name, weight, [(p.relative_to(path), str(p)) for p in files])


def _address(name: str, weight: float | None) -> Source:
    """The files at an address; those of a folder as in a folder here."""
    whole, names = at(name)
    found = [f for f in names if kind_of(f)]
    if not found:
        raise DataError(f"{name} has no file that ends in {SAYS}")
    start = whole.rstrip("/") + "/"
    if not all(f.startswith(start) for f in found):
        return Source(name, weight, files=tuple(map(RowFile, found)))
    inside = [(Path(f.removeprefix(start)), f) for f in found]
    return _divided(name, weight, [pair for pair in inside if not any(p.startswith(".") for p in pair[0].parts)])


def _divided(name: str, weight: float | None, files: Sequence[tuple[Path, str]]) -> Source:
    """The files of a folder, by their places in it, as those to train on and those that are held out."""
    held_out = [place for place, _ in files if is_held_out_name(place)]
    train = [f for place, f in files if place not in held_out]
    if held_out and not train:
        raise DataError(
            f"{name}: the names of all files say that they are held out (such as {held_out[0]}); "
            "give the path of a file to train on it"
        )
    if not train:
        raise DataError(f"{name} is a folder without training files ({SAYS})")
    return Source(name, weight, _files(train), _files(f for place, f in files if place in held_out))


def _files(names: Iterable[str]) -> tuple[RowFile, ...]:
    return tuple(map(RowFile, names))


# --- folders of `save_to_disk` ---------------------------------------------------------------------------------------

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def _saved_splits(name: str, path: Path, weight: float | None) -> Source:
    """A saved DatasetDict: a folder for each split. The one to train on and the one that is held out are chosen as
    those of a hub dataset are."""
    splits = [s for s in _written(path / SPLITS, "splits") if (path / s / STATE).is_file()]
    held_out = [s for s in splits if HELD_OUT_NAME.search(s)]
    train = [s for s in splits if s == "train"] or [s for s in splits if s not in held_out]
    if len(train) != 1:
        raise DataError(
            f"{name} has the splits {', '.join(splits) or 'of nothing'}; give the folder of the one to train on"
        )
    chosen = [s for s in HELD_OUT_SPLITS if s in held_out] or held_out
    files = [[str(path / s / f) for f in _saved_files(path / s)] for s in (train[0], *chosen[:1])]
    return Source(name, weight, _files(files[0]), _files(f for part in files[1:] for f in part))


def _saved_files(folder: Path) -> list[str]:
    """The tables of a saved Dataset; other tables beside them are left over from work on it."""
    return [str(file.get("filename")) for file in _written(folder / STATE, "_data_files")]


def _written(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list):
        raise DataError(f"{path} is not what datasets.save_to_disk writes; save the dataset again")
    return found
