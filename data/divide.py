"""Which rows of which source a stage trains on, and which it holds out: split, blend and repeats over all sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.blend import HELD_OUT_SALT, blend, first_of_each, is_held_out, mix, stage_of
from data.config import DataSettings
from data.contents import has_held_out
from data.encode import Kind
from data.kept import Kept
from data.sources import parse
from data.store import Store, open_stores

KINDS: dict[int, Kind] = {1: "demonstrations", 2: "preferences", 3: "prompts"}  # what each stage reads


def open_all(settings: DataSettings, *, kept: Kept | None = None) -> tuple[list[Store], list[Store]]:
    """The sources to train on, and those that are held out: `eval_data_path`, else the splits that sources have."""
    sources = [parse(spec) for spec in settings.data_path]
    stores = open_stores(sources, settings, kept=kept)
    if settings.eval_data_path:
        return stores, open_stores([parse(spec) for spec in settings.eval_data_path], settings, kept=kept)
    return stores, open_stores([s for s in sources if has_held_out(s)], settings, held_out=True, kept=kept)


def divide(
    stores: Sequence[Store], evaluation: Sequence[Store], settings: DataSettings, *, stage: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(source, row) of a stage's training rows and of its held-out rows, and the counts of repeated content.

    A prompt is held out when it is in `evaluation`. A source without a held-out split also holds prompts out by hash.
    """
    kind, seed = KINDS[stage], settings.data_seed
    everything = [*stores, *evaluation]
    aside = np.unique(np.concatenate([s.column("prompt_key") for s in evaluation] or [np.zeros(0, np.uint64)]))
    train, held_out, repeated, kept_out = [], [], 0, 0
    content_column = {"demonstrations": "chosen_key", "preferences": "row_key", "prompts": "prompt_key"}[kind]
    content = [s.column(content_column) for s in everything]
    for number, store in enumerate(everything):
        keys, usable = store.column("prompt_key"), _usable(store, kind)
        if number >= len(stores):
            train.append(np.zeros(len(keys), dtype=bool))
            held_out.append(usable)
            continue
        usable &= stage_of(keys, settings.shares, seed=seed) == stage
        known = np.isin(keys, aside)
        own = bool(settings.eval_data_path) or has_held_out(store.source)
        kept_out += int((usable & known).sum())
        usable &= ~known
        by_hash = np.zeros(len(keys), dtype=bool) if own else is_held_out(keys, settings.eval_ratio, seed=seed)
        train.append(usable & ~by_hash)
        held_out.append(usable & by_hash)
    if not any(mask.any() for mask in held_out):
        _hold_out_some(train, held_out, [s.column("prompt_key") for s in everything], seed=seed)
    parts = []
    for masks, limit in ((train, settings.max_samples), (held_out, settings.max_eval_samples)):
        fresh = without_repeats(masks, content)
        repeated += int(sum(m.sum() - f.sum() for m, f in zip(masks, fresh, strict=True)))
        offered = [np.flatnonzero(f) for f in fresh]
        row_keys = [s.column("row_key")[r] for s, r in zip(everything, offered, strict=True)]
        shares = weights(stores) if masks is train else None
        shares = shares and [*shares, *[0.0] * len(evaluation)]
        parts.append(blend(offered, row_keys, shares, seed=seed, limit=limit))
    prompts_of = [np.unique(s.column("prompt_key")) for s in stores]
    duplicates = {
        "prompts_in_several_sources": sum(map(len, prompts_of)) - len(np.unique(np.concatenate(prompts_of))),
        "repeated_rows_left_out": repeated,
        "training_rows_left_out_as_held_out": kept_out,
    }
    return parts[0], parts[1], duplicates


def _hold_out_some(
    train: Sequence[np.ndarray], held_out: Sequence[np.ndarray], keys: Sequence[np.ndarray], *, seed: int
) -> None:
    """If a small set has no held-out prompt by chance, move two (one if there are fewer than eight) from `train` to
    `held_out`: those that a larger ratio would hold out first."""
    prompts = np.unique(np.concatenate([k[t] for k, t in zip(keys, train, strict=True)]))
    prompts = prompts[np.argsort(mix(prompts, seed=seed, salt=HELD_OUT_SALT))]
    chosen = prompts[: min(2, max(1, len(prompts) // 4))] if len(prompts) > 1 else prompts[:0]
    for t, h, k in zip(train, held_out, keys, strict=True):
        h |= t & np.isin(k, chosen)
        t &= ~h


def without_repeats(masks: Sequence[np.ndarray], content: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The masks, False also where an earlier True row (of this or an earlier source) has the same content."""
    under = np.flatnonzero(np.concatenate(masks))
    fresh = np.zeros(sum(map(len, masks)), dtype=bool)
    fresh[under[first_of_each(np.concatenate(content)[under])]] = True
    return np.split(fresh, np.cumsum([len(m) for m in masks])[:-1])


def _usable(store: Store, kind: Kind) -> np.ndarray:
    """True where a row has what the stage needs."""
    usable = store.has("prompt")
    if kind == "demonstrations":
        usable &= store.has("chosen") & store.column("demonstrates").astype(bool)
    elif kind == "preferences":
        usable &= store.has("chosen") & store.has("rejected")
    return usable


def weights(stores: Sequence[Store]) -> list[float] | None:
    """The weights, 1 for a source without one. None when no source has a weight: then every row is used."""
    given = [s.source.weight for s in stores]
    return None if all(w is None for w in given) else [1.0 if w is None else w for w in given]
