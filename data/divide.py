"""Which rows of which source a stage trains on, and which it holds out: split, blend and repeats over all sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.blend import HELD_OUT_SALT, blend, first_of_each, is_held_out, mix, stage_of
from data.config import DataSettings
from data.contents import has_held_out
from data.encode import Kind
from data.kept import Kept
from data.sources import parse
from data.store import Store, open_stores

KINDS: dict[int, Kind] = {1: "demonstrations", 2: "preferences", 3: "prompts"}  # what each stage reads
NEEDS: dict[Kind, str] = {  # what a row must have
    "demonstrations": "prompt and chosen",
    "preferences": "chosen and rejected",
    "unpaired": "a good or a bad response",
    "prompts": "a prompt",
}


def open_all(settings: DataSettings, *, kept: Kept | None = None) -> tuple[list[Store], list[Store]]:
    """The sources to train on, and those that are held out: `eval_data_path`, else the splits that sources have."""
    sources = [parse(spec) for spec in settings.data_path]
    stores = open_stores(sources, settings, kept=kept)
    if settings.eval_data_path:
        return stores, open_stores([parse(spec) for spec in settings.eval_data_path], settings, kept=kept)
    return stores, open_stores([s for s in sources if has_held_out(s)], settings, held_out=True, kept=kept)


def divide(
    stores: Sequence[Store],
    evaluation: Sequence[Store],
    settings: DataSettings,
    *,
    stage: int,
    kind: Kind | None = None,
    demonstrations: bool = True,
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(source, row) of a stage's training rows and of its held-out rows, and the counts of repeated content.

    A prompt is held out when it is in `evaluation`. A source without a held-out split also holds prompts out by hash.
    `kind`, where it is not the stage's own: with "unpaired" the tables have a third column, 1 for a row's good response
    and 0 for its bad one; without `demonstrations`, sources that have no bad response at all are left out then.
    """
    kind, seed = kind or KINDS[stage], settings.data_seed
    everything = [*stores, *evaluation]
    offers = [_offer(store, kind, demonstrations=demonstrations) for store in everything]
    aside = np.unique(np.concatenate([s.column("prompt_key") for s in evaluation] or [np.zeros(0, np.uint64)]))
    train, held_out, repeated, kept_out = [], [], 0, 0
    for number, store in enumerate(everything):
        keys, usable = offers[number].prompts, offers[number].usable
        if number >= len(stores):
            train.append(np.zeros(len(keys), dtype=bool))
            held_out.append(usable)
            continue
        usable = usable & (stage_of(keys, settings.shares, seed=seed) == stage)
        known = np.isin(keys, aside)
        own = bool(settings.eval_data_path) or has_held_out(store.source)
        kept_out += int((usable & known).sum())
        usable &= ~known
        by_hash = np.zeros(len(keys), dtype=bool) if own else is_held_out(keys, settings.eval_ratio, seed=seed)
        train.append(usable & ~by_hash)
        held_out.append(usable & by_hash)
    if not any(mask.any() for mask in held_out):
        _hold_out_some(train, held_out, [offer.prompts for offer in offers], seed=seed)
    parts = []
    for masks, limit in ((train, settings.max_samples), (held_out, settings.max_eval_samples)):
        fresh = without_repeats(masks, [offer.content for offer in offers])
        repeated += int(sum(m.sum() - f.sum() for m, f in zip(masks, fresh, strict=True)))
        offered = [np.flatnonzero(f) for f in fresh]
        row_keys = [offer.order[rows] for offer, rows in zip(offers, offered, strict=True)]
        shares = weights(stores) if masks is train else None
        shares = shares and [*shares, *[0.0] * len(evaluation)]
        table = blend(offered, row_keys, shares, seed=seed, limit=limit)
        parts.append(_by_response(table) if kind == "unpaired" else table)
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


@dataclass(frozen=True)
class _Offer:
    """What a source has for a stage, one entry a row: whether it has what the stage needs, and the hashes of its
    prompt, of what must not be repeated, and of its place in the blend."""

    usable: np.ndarray
    prompts: np.ndarray
    content: np.ndarray
    order: np.ndarray


def _offer(store: Store, kind: Kind, *, demonstrations: bool) -> _Offer:
    usable, prompts = store.has("prompt"), store.column("prompt_key")
    if kind == "unpaired":
        return _responses_of(store, usable, prompts, demonstrations=demonstrations)
    if kind == "demonstrations":
        usable &= store.has("chosen") & store.column("demonstrates").astype(bool)
    elif kind == "preferences":
        usable &= store.has("chosen") & store.has("rejected")
    content = {"demonstrations": "chosen_key", "preferences": "row_key", "prompts": "prompt_key"}[kind]
    return _Offer(usable, prompts, store.column(content), store.column("row_key"))


def _responses_of(store: Store, usable: np.ndarray, prompts: np.ndarray, *, demonstrations: bool) -> _Offer:
    """Each row twice: entry 2i is the bad response of row i, entry 2i + 1 the good one. An answer that only beats
    another one, while a better one exists, is not good; the row in which it is the worse one says so."""
    bad = store.has("rejected")
    good = store.has("chosen") & store.column("demonstrates").astype(bool)
    if not demonstrations and not bad.any():
        good &= False
    keys = np.stack([store.column("rejected_key"), store.column("chosen_key") ^ np.uint64(1)], axis=1).ravel()
    both = np.stack([usable & bad, usable & good], axis=1).ravel()
    return _Offer(both, np.repeat(prompts, 2), keys, keys)


def _by_response(table: np.ndarray) -> np.ndarray:
    """(source, entry) of `_responses_of` → (source, row, whether it is the good response)."""
    return np.stack([table[:, 0], table[:, 1] // 2, table[:, 1] % 2], axis=1)


def weights(stores: Sequence[Store]) -> list[float] | None:
    """The weights, 1 for a source without one. None when no source has a weight: then every row is used."""
    given = [s.source.weight for s in stores]
    return None if all(w is None for w in given) else [1.0 if w is None else w for w in given]
