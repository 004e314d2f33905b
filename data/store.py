"""A source read once: its Examples in a memory-mapped Arrow file, with the hashes that split and blend need.

The store depends on the source's content and how it is read, not on stage, seed, tokenizer or lengths, so all stages
and later runs share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.cache import build_once, default_folder, key_of
from data.config import SourceSettings
from data.contents import fingerprint, names
from data.example import Example, Place, content_hash, prompt_hash, prompt_json, thoughts_of
from data.kept import Kept
from data.reading import Reader, correct_or_skip
from data.sources import Source
from rlhf.errors import DataError
from rlhf.files import expand_user, write_json

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 1000
# The format of the stores on disk, part of their key. Raise it when the same source, read with the same settings, would
# give other rows or another info.json, whichever module changes: this one, or one that reads, recognises or adapts
# rows. Tokens are cached under the stores' keys, so they are then made again as well.
FORMAT = 5


@dataclass
class Store:
    """One source's Examples: columns prompt (JSON of messages), chosen, chosen_thoughts, rejected, rejected_thoughts,
    margin, demonstrates, learned, text, file and where (the number of the file, and the place in it), and 64-bit
    hashes: prompt_key, chosen_key and rejected_key (with the prompt), row_key; and kept (see `data.kept`) where rewards
    read columns. `place` and `batches` give `where` with the file's present name: a store is found by the content, so
    its files may have been moved, or be those of another source.

    info: says (the shape in words), rows (read), bad (what was wrong → rows), bad_rows, first_bad (a few of them with
    their places), silent_rows (that gave nothing), remarks (what is not used, or probably a mistake → rows), known (a
    known hub dataset), mapped (by the user's `columns`), empty (files without a row), columns (where some are kept).

    fingerprint: of the source's content. key: of the content and of how it was read, so it names exactly these rows.
    names: of the files, by their numbers.
    """

    source: Source
    dataset: Dataset
    fingerprint: str
    key: str
    info: dict[str, Any]
    names: list[str]

    def place(self, row: int) -> str:
        """The place of a row, with the present name of its file."""
        found = self.dataset[row]
        return str(Place(self.names[found["file"]], found["file"], found["where"]))

    def record(self, row: int) -> dict[str, Any]:
        """A row, `where` being its place with the present name of its file."""
        return {**self.dataset[row], "where": self.place(row)}

    def column(self, name: str) -> np.ndarray:
        """A column of numbers as an array, without Python objects."""
        chunks = self.dataset.data.column(name).chunks
        return np.concatenate([c.to_numpy(zero_copy_only=False) for c in chunks]) if chunks else np.zeros(0)

    def batches(self, *columns: str) -> Iterator[Iterator[tuple[Any, ...]]]:
        """The rows, a thousand at a time, as tuples of the columns' values."""
        read = [*columns, *(["file"] if "where" in columns else [])]
        for batch in self.dataset.select_columns(read).iter(batch_size=ROWS_AT_ONCE):
            found: dict[str, Any] = dict(batch)  # type: ignore[arg-type]
            if "where" in columns:
                found["where"] = placed(self.names, found["file"], found["where"])
            yield zip(*(found[name] for name in columns), strict=True)

    def has(self, name: str) -> np.ndarray:
        """True where a text column is there."""
        chunks = self.dataset.data.column(name).chunks
        return np.concatenate([c.is_valid().to_numpy(zero_copy_only=False) for c in chunks] or [np.zeros(0, bool)])


def placed(names: Sequence[str], file: Sequence[int], where: Sequence[str]) -> list[str]:
    """Places with the present names of their files."""
    return [str(Place(names[number], number, inside)) for number, inside in zip(file, where, strict=True)]


def open_store(source: Source, settings: SourceSettings, *, held_out: bool = False, kept: Kept | None = None) -> Store:
    """The Examples of a source (or of its own held-out split), read now or earlier. With `kept` they also have that."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    content = fingerprint(source, held_out=held_out)
    adapter = expand_user(Path(settings.data_adapter.rpartition(":")[0]))
    code = adapter.read_text(encoding="utf-8", errors="surrogateescape") if adapter.is_file() else ""
    values = {
        "content": content,
        "files": len(names(source, held_out=held_out)),
        "hub": source.hub.name if source.hub else "",
        "columns": settings.columns,
        "adapter": [settings.data_adapter, code],
    }
    if kept is not None:
        values["kept"] = kept.key()
    key = key_of(values, format=FORMAT)
    folder = build_once(
        settings.data_cache_dir or default_folder(),
        "rows",
        key,
        lambda folder: _build(folder, source, settings, held_out=held_out, kept=kept),
        doing=f"reading {source.name}",
    )
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    called = names(source, held_out=held_out)
    info["first_bad"] = [f"{Place(called[file], file, where)}: {what}" for file, where, what in info["first_bad"]]
    info["empty"] = [called[file] for file in info["empty"]]
    if info["bad_rows"] and not (settings.skip_bad_rows or info["known"]):  # an earlier run skipped them
        raise DataError(*info["first_bad"], correct_or_skip(source, f"{info['bad_rows']:,}"))
    return Store(source, Dataset.from_file(str(folder / "rows.arrow")), content, key, info, called)


def open_stores(
    sources: Sequence[Source], settings: SourceSettings, *, held_out: bool = False, kept: Kept | None = None
) -> list[Store]:
    """The stores of several sources; raises DataError when `columns` names columns that none of them has, or when none
    has a column that is needed."""
    stores = [open_store(source, settings, held_out=held_out, kept=kept) for source in sources]
    if kept is not None and stores and (missing := kept.problems({c for s in stores for c in s.info["columns"]})):
        raise DataError(*missing)
    if settings.columns and stores and not any(s.info["mapped"] for s in stores) and not settings.data_adapter:
        raise DataError(unmapped(settings.columns))
    return stores


def unmapped(columns: str) -> str:
    return f"--columns {columns}: no source has these columns; write it as name=column with the columns' exact names"


def _build(folder: Path, source: Source, settings: SourceSettings, *, held_out: bool, kept: Kept | None) -> None:
    import pyarrow as pa

    text, key = pa.large_string(), pa.uint64()
    schema = pa.schema(
        {
            "prompt": text, "chosen": text, "rejected": text, "chosen_thoughts": text, "rejected_thoughts": text,
            "margin": pa.float32(), "demonstrates": pa.bool_(),
            "learned": pa.list_(pa.int32()), "text": text, "file": pa.int32(), "where": pa.string(),
            "prompt_key": key, "chosen_key": key, "rejected_key": key, "row_key": key,
            **({"kept": text} if kept is not None else {}),
        }
    )  # fmt: skip
    reader = Reader(source, settings, held_out=held_out, kept=kept)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        batch: list[dict[str, Any]] = []
        for where, example in reader:
            batch.append(_record(where, example))
            if len(batch) == ROWS_AT_ONCE:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    write_json(
        folder / "info.json",
        {
            "says": reader.says,
            "mapped": reader.mapped,
            "known": reader.known,
            "rows": reader.read,
            "bad": dict(reader.bad.most_common(20)),
            "bad_rows": reader.bad.total(),
            "silent_rows": reader.silent,
            "remarks": dict(reader.remarks.most_common(20)),
            "first_bad": [[place.file, place.inside, what] for place, what in reader.noted],
            "empty": sorted(set(range(len(names(source, held_out=held_out)))) - reader.files),
            **({"columns": sorted(reader.columns)} if kept is not None else {}),
        },
    )


def _record(place: Place, example: Example) -> dict[str, Any]:
    prompt_key = content_hash(example.text) if example.text is not None else prompt_hash(example.prompt)
    thoughts = {name: thoughts_of(getattr(example, name)) for name in ("chosen", "rejected")}
    chosen_key, rejected_key = (
        content_hash(str(prompt_key), getattr(example, name) or "", *filter(None, [thoughts[name]]))
        for name in ("chosen", "rejected")
    )
    return {
        "prompt": prompt_json(example.prompt) if example.text is None else None,
        "chosen": example.chosen,
        "rejected": example.rejected,
        "chosen_thoughts": thoughts["chosen"],
        "rejected_thoughts": thoughts["rejected"],
        "margin": example.margin,
        "demonstrates": example.demonstrates,
        "learned": list(example.learned),
        "text": example.text,
        "kept": example.kept,
        "file": place.file,
        "where": place.inside,
        "prompt_key": prompt_key,
        "chosen_key": chosen_key,
        "rejected_key": rejected_key,
        "row_key": (chosen_key * 0x9E3779B97F4A7C15 + rejected_key) % 2**64,  # odd, so both of them count
    }
