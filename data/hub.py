"""Hub datasets by exact name, through `datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.adapters import KNOWN
from data.example import Row
from data.sources import HELD_OUT_SPLITS, HubName, Source
from rlhf.errors import DataError, nearest

# Datasets whose obvious choice is wrong: their configuration and splits (to train on, held out).
CONFIGS = {"openai/summarize_from_feedback": "comparisons", "Salesforce/wikitext": "wikitext-103-raw-v1"}
SPLITS = {
    "HuggingFaceH4/ultrafeedback_binarized": ("train_prefs", "test_prefs"),
    "openai/summarize_from_feedback": ("train", "validation"),
}
CONFIG_IS_FOLDER = {"Anthropic/hh-rlhf"}  # helpful-base, harmless-base, …
CONVERTED = "refs/convert/parquet"


def hub_rows(source: Source, *, held_out: bool) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(load_split(_hub(source), held_out)):
        yield f"row {number + 1}", row


def hub_fingerprint(source: Source, *, held_out: bool) -> str:
    """A hash of the addresses of the dataset's files; the addresses hold the revision."""
    dataset = load_split(_hub(source), held_out)
    files = sorted(dataset.info.download_checksums or {}) or [dataset._fingerprint]
    return hashlib.blake2b(repr((str(dataset.split), files)).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=32)
def hub_splits(hub: HubName) -> tuple[str, str | None]:
    """The split to train on and the one that is held out, if there is one; a named split is trained on alone."""
    if hub.split:
        return hub.split, None
    if hub.name in SPLITS:
        return SPLITS[hub.name]
    import datasets

    names = _reach(hub, lambda **options: datasets.get_dataset_split_names(hub.name, **options), "config_name")
    train = "train" if "train" in names else names[0]
    return train, next((n for n in HELD_OUT_SPLITS if n in names and n != train), None)


def unreachable(hub: HubName) -> str | None:
    """Why a dataset cannot be loaded, in one line, or None. It asks the hub and loads nothing; it does not ask about
    a cached dataset."""
    from datasets import config
    from huggingface_hub import HfApi

    if (Path(config.HF_DATASETS_CACHE) / hub.name.replace("/", "___")).is_dir():
        return None
    try:
        HfApi().dataset_info(hub.name, revision=hub.revision, timeout=10)
    except Exception as error:  # no network, a proxy, offline mode: the client and its libraries raise their own
        return _no_dataset(hub, error)
    return None


def _hub(source: Source) -> HubName:
    assert source.hub
    return source.hub


@lru_cache(maxsize=8)
def load_split(hub: HubName, held_out: bool) -> Any:
    """The rows that are trained on, or those that are held out."""
    import datasets

    split = hub_splits(hub)[1 if held_out else 0]
    return _reach(hub, lambda **options: datasets.load_dataset(hub.name, split=split, **options), "name")


def _reach(hub: HubName, load: Callable[..., Any], config_key: str) -> Any:
    """`load(**options)`; `config_key` is its name for a configuration. `datasets` 4 refuses repositories with a loading
    script; these are read from the tables that the hub made of them, one folder for each configuration."""
    config = hub.config or CONFIGS.get(hub.name)
    try:
        key = "data_dir" if hub.name in CONFIG_IS_FOLDER else config_key
        try:
            return load(**{key: config, "revision": hub.revision})
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error) or hub.revision:
                raise
            return load(data_dir=config, revision=CONVERTED)
    except Exception as error:  # the hub client, the network and each format raise their own
        raise DataError(_no_dataset(hub, error)) from error


def _no_dataset(hub: HubName, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = "" if hub.name in KNOWN else nearest(hub.name, KNOWN)
    return f"{hub.name} is neither a file or folder here nor a hub dataset that can be loaded{hint} ({reason})"
