"""The token cache: chosen rows encoded in batches, by several processes, into memory-mapped Arrow files."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import encode
from data.cache import build_once, default_folder, key_of
from data.config import SourceSettings
from data.store import Store
from data.texts import TextEncoder
from rlhf.files import write_json

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 1000
PR_SET_PDEATHSIG = 1
READ = [
    *("prompt", "chosen", "chosen_thoughts", "rejected", "rejected_thoughts", "margin", "learned", "text"),
    *("file", "where"),
]
# The format of the tokenised rows on disk, part of their key. Raise it when the same Examples, encoded with the same
# settings, would give other rows or another info.json: after a change here, in data/encode.py, data/texts.py,
# data/learned.py, data/cutting.py, rlhf/template.py, rlhf/boundary.py, rlhf/marks.py or rlhf/rendering.py.
FORMAT = 3


def encoded(
    stores: Sequence[Store], table: np.ndarray, encoder: encode.Encoder | TextEncoder, settings: SourceSettings
) -> tuple[Dataset, dict[str, Any]]:
    """The rows of `table` (source, row) encoded in its order, read from the cache or written to it. For unpaired rows
    the table also says which of a row's responses is meant (1: the good one).

    Also what became of them: {"rows", "dropped": {why: rows}, "cut": {what: rows}, "tokens", "fingerprint"}, the last
    one naming the encoded rows; of demonstrations also the "turns" that are learned and those that are "unlearned",
    although they were to be.
    """
    from datasets import Dataset, concatenate_datasets

    order = hashlib.blake2b(np.ascontiguousarray(table).tobytes(), digest_size=16).hexdigest()
    what = encoder.settings()
    key = key_of({**what, "order": order, "stores": [s.key for s in stores]}, format=FORMAT)
    folder = build_once(
        settings.data_cache_dir or default_folder(),
        what["kind"],
        key,
        lambda folder: _build(folder, stores, table, encoder, num_proc=settings.num_proc),
        doing=f"tokenising {len(table):,} rows",
    )
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    dataset = concatenate_datasets([Dataset.from_file(str(f)) for f in sorted(folder.glob("rows*.arrow"))])
    if info["dropped"]:
        dataset = dataset.select(np.flatnonzero((_numbers(dataset, "outcome") & encode.DROPPED) == 0))
    dataset = dataset.remove_columns([n for n in ("outcome", "turns", "unlearned") if n in dataset.column_names])
    return dataset, {**info, "fingerprint": key}


def _build(folder: Path, stores: Sequence[Store], table: np.ndarray, encoder: Any, *, num_proc: int) -> None:
    from datasets import Features, List, Value, concatenate_datasets

    features = Features(
        {n: List(Value("int32")) if t == encode.IDS else Value(t) for n, t in encoder.features().items()}
    )
    sizes = [len(s.dataset) for s in stores]
    read = [*READ, *(["kept"] if "kept" in features else [])]
    joined = concatenate_datasets([s.dataset.select_columns(read) for s in stores])
    joined = joined.add_column("source", np.repeat(np.arange(len(stores), dtype=np.int32), sizes))
    numbers = np.cumsum([0, *sizes])[table[:, 0]] + table[:, 1]
    if encoder.kind == "unpaired":
        numbers = numbers + len(joined) * table[:, 2]
        joined = concatenate_datasets([joined, joined]).add_column("desirable", np.repeat([False, True], len(joined)))
    chosen = joined.select(numbers)
    with _children_die_with_us():
        rows = chosen.map(
            _Named(encoder, [s.names for s in stores]),
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=joined.column_names,
            features=features,
            num_proc=num_proc if num_proc > 1 and len(chosen) > ROWS_AT_ONCE else None,
            cache_file_name=str(folder / "rows.arrow"),
            load_from_cache_file=False,
            new_fingerprint="of-this-folder",  # names the shards' caches, which are not used
        )
    if not list(folder.glob("rows*.arrow")):  # `map` writes nothing for no rows
        _write_empty(folder / "rows.arrow", features)
    write_json(folder / "info.json", _counts(rows))


@dataclass(frozen=True)
class _Named:
    """Gives `encoder` the rows with the names of their files, which it needs where a row cannot be encoded."""

    encoder: Any
    names: list[list[str]]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        places = zip(batch["source"], batch["file"], batch["where"], strict=True)
        where = [f"{self.names[source][file]}, {inside}" for source, file, inside in places]
        return self.encoder({**batch, "where": where})


class _Guard:
    """`on`: processes that are forked now end when this one does. `ready`: this was set up."""

    on = ready = False


@contextmanager
def _children_die_with_us() -> Iterator[None]:
    """The workers and the queue's server that `datasets` forks would outlive a killed rank, waiting for ever."""
    if not _Guard.ready and sys.platform == "linux":
        libc = ctypes.CDLL(None)

        def after_fork() -> None:
            if _Guard.on:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        os.register_at_fork(after_in_child=after_fork)
        _Guard.ready = True
    _Guard.on = True
    try:
        yield
    finally:
        _Guard.on = False


def _write_empty(path: Path, features: Any) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema):
        pass


def _counts(rows: Dataset) -> dict[str, Any]:
    """What became of the rows, as `encoded` gives it."""
    if "outcome" not in rows.column_names or not len(rows):
        tokens = int(_numbers(rows, "length").sum()) if len(rows) else 0
        return {"rows": len(rows), "dropped": {}, "cut": {}, "tokens": tokens}
    outcome, length = _numbers(rows, "outcome"), _numbers(rows, "length")
    kept, dropped = (outcome & encode.DROPPED) == 0, left_out(outcome)
    cut = {
        says: int((kept & ((outcome & bit) > 0)).sum())
        for bit, says in encode.SAYS.items()
        if not bit & encode.DROPPED and (kept & ((outcome & bit) > 0)).any()
    }
    turns = {n: int(_numbers(rows, n)[kept].sum()) for n in ("turns", "unlearned") if n in rows.column_names}
    return {"rows": int(kept.sum()), "dropped": dropped, "cut": cut, "tokens": int(length[kept].sum()), **turns}


def left_out(outcome: np.ndarray) -> dict[str, int]:
    """Why rows with these outcomes are dropped, and how many for each reason."""
    return {
        says: int(((outcome & bit) > 0).sum())
        for bit, says in encode.SAYS.items()
        if bit & encode.DROPPED and (outcome & bit).any()
    }


def _numbers(dataset: Dataset, name: str) -> np.ndarray:
    return np.asarray(dataset.with_format("numpy")[name][:])
