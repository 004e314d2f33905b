"""Hub datasets by exact name, `org/name[/config][@revision][#split]`, through `datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from data.example import RowError
from data.sources import HUB_NAME, Row, Source
from rlhf.errors import DataError

HELD_OUT_SPLITS = ("test", "validation", "eval", "dev")


def hub_rows(source: Source, *, held_out: bool) -> Iterator[tuple[str, Row | RowError]]:
    for number, row in enumerate(_load(source.name, held_out)):
        yield f"{source.name}, row {number + 1}", row


def hub_fingerprint(source: Source, *, held_out: bool) -> str:
    """Of the files that the dataset was made from: their addresses hold the revision."""
    dataset = _load(source.name, held_out)
    files = sorted(dataset.info.download_checksums or {}) or [dataset._fingerprint]
    return hashlib.blake2b(repr((str(dataset.split), files)).encode(), digest_size=16).hexdigest()


def hub_splits(source: Source) -> tuple[str, str | None]:
    """The split to train on and the one held out, if the dataset has one; a named split is trained on alone."""
    assert source.hub
    if source.hub["split"]:
        return source.hub["split"], None
    import datasets

    names = _reach(source.name, lambda: datasets.get_dataset_split_names(
        source.hub["name"], source.hub["config"], revision=source.hub["revision"]))  # fmt: skip
    train = "train" if "train" in names else names[0]
    return train, next((n for n in HELD_OUT_SPLITS if n in names and n != train), None)


@lru_cache(maxsize=8)
def _load(name: str, held_out: bool) -> Any:
    import datasets

    hub = HUB_NAME.fullmatch(name)
    assert hub
    split = hub_splits(Source(name, hub=hub))[1 if held_out else 0]
    return _reach(name, lambda: datasets.load_dataset(
        hub["name"], hub["config"], revision=hub["revision"], split=split))  # fmt: skip


def _reach(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # the hub client, the network and each format raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} is neither a file or folder here nor a hub dataset that can be loaded: {reason}") from error
