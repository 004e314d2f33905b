"""The rows that a stage gets: sources read, split over the stages, blended, tokenised into the cache, and reported.

    demonstrations  stage 1    {"input_ids", "prompt_length"}
    preferences     stage 2    {"prompt_ids", "chosen_ids", "rejected_ids", "margin"}
    prompts         stage 3    {"prompt_ids", "messages"}
    pretraining     stage 3    {"input_ids"}

Rows also have "source" (the name of it) and "length" (tokens). Every process of a run may call these functions at any
time: one builds, the others wait. Nothing here needs a process group.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import encode
from data.blend import HELD_OUT_SALT, blend, first_of_each, is_held_out, mix, stage_of
from data.config import DataSettings, PretrainingMixSettings
from data.packing import PackedRows
from data.report import announce, announce_pretraining
from data.rows import Rows
from data.sources import has_held_out, parse
from data.store import Store, open_stores
from data.tokens import encoded
from rlhf.console import say
from rlhf.errors import DataError
from rlhf.files import write_yaml
from rlhf.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


KINDS: dict[int, encode.Kind] = {1: "demonstrations", 2: "preferences", 3: "prompts"}


@dataclass
class StageData:
    """What a stage trains on and what it evaluates on; `report` says what it got and what was left out."""

    train: Rows | PackedRows
    held_out: Rows
    report: dict[str, Any] = field(default_factory=dict)

    def record(self, folder: Path) -> None:
        """Write the report to `folder/data.yaml`, from rank 0."""
        if os.environ.get("RANK", "0") in ("", "0"):
            write_yaml(folder / "data.yaml", self.report)


def demonstrations(settings: DataSettings, template: Template, *, packing: bool = False) -> StageData:
    """Prompts with their chosen response, for stage 1; with `packing` several of them in a training row."""
    data = _stage(settings, template, stage=1)
    if packing and isinstance(data.train, Rows):
        rows = data.train
        data.train = PackedRows(rows, settings.max_prompt_length + settings.max_response_length)
        data.report["train"]["packs"] = len(data.train)
        say(f"packing: {len(rows):,} demonstrations in {len(data.train):,} rows")
    return data


def preferences(settings: DataSettings, template: Template) -> StageData:
    """Prompts with a chosen and a rejected response, for stage 2."""
    return _stage(settings, template, stage=2)


def prompts(settings: DataSettings, template: Template) -> StageData:
    """Prompts, each once, for stage 3."""
    return _stage(settings, template, stage=3)


def pretraining(settings: PretrainingMixSettings, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Blocks of `ptx_length` ids of plain text, for the pretraining mix."""
    stores = open_stores([parse(spec) for spec in settings.ptx_data], settings.reading())
    texts = _without_repeats([s.has("text") for s in stores], [s.column("row_key") for s in stores])
    offered = [np.flatnonzero(t) for t in texts]
    if not any(len(rows) for rows in offered):
        raise DataError("ptx_data has no plain text: it needs a column 'text' (or --ptx-column NAME)")
    table = blend(
        offered, [s.column("row_key")[r] for s, r in zip(stores, offered, strict=True)], _weights(stores),
        seed=settings.data_seed,
    )  # fmt: skip
    dataset, report = encoded(stores, table, encode.TextEncoder(tokenizer, settings.ptx_length), settings)
    counts = np.bincount(table[:, 0], minlength=len(stores)).tolist()
    report["sources"] = [_of_source(s) | {"texts": n} for s, n in zip(stores, counts, strict=True)]
    announce_pretraining(report)
    return Rows(dataset, [s.source.name for s in stores], report)


# --- split and blend -------------------------------------------------------------------------------------------------


def _stage(settings: DataSettings, template: Template, *, stage: int) -> StageData:
    if not settings.data_path:
        raise DataError("data_path is needed: give --data-path a file, a folder or a hub dataset")
    kind = KINDS[stage]
    stores, evaluation = open_all(settings)
    everything = [*stores, *evaluation]
    names = [s.source.name for s in everything]
    train, held_out, duplicates = divide(stores, evaluation, settings, stage=stage)
    encoder = encode.Encoder(template, limits(settings), kind, skip_bad_rows=settings.skip_bad_rows)
    report: dict[str, Any] = {
        "stage": stage,
        "data_split": settings.data_split,
        "data_seed": settings.data_seed,
        "sources": [
            _of_source(store) | {"train": int((train[:, 0] == i).sum()), "held_out": int((held_out[:, 0] == i).sum())}
            for i, store in enumerate(everything)
        ],
        "duplicates": duplicates,
    }
    parts = []
    for name, table in (("train", train), ("held_out", held_out)):
        dataset, report[name] = encoded(everything, table, encoder, settings)
        parts.append(Rows(dataset, names))
        if not len(dataset):
            raise DataError(_nothing_left(name, report, settings))
    announce(report)
    return StageData(parts[0], parts[1], report)


def _of_source(store: Store) -> dict[str, Any]:
    return {
        "source": store.source.name,
        "weight": store.source.weight,
        "shape": store.info["says"],
        "fingerprint": store.fingerprint,
        "rows": store.info["rows"],
        "examples": len(store.dataset),
        "bad_rows": store.info["bad_rows"],
        "bad": store.info["bad"],
        "silent_rows": store.info["silent_rows"],
    }


def _nothing_left(part: str, report: dict[str, Any], settings: DataSettings) -> str:
    """Why a stage has no rows, and the way out."""
    start = f"stage {report['stage']} has no {part.replace('_', '-')} rows"
    if dropped := report[part]["dropped"]:
        return f"{start}: all were dropped ({'; '.join(f'{n} × {why}' for why, n in dropped.items())})"
    needs = {"demonstrations": "prompt and chosen", "preferences": "chosen and rejected", "prompts": "a prompt"}[
        KINDS[report["stage"]]
    ]
    return (
        f"{start}: either the sources have no rows with {needs}, or data_split={settings.data_split} and "
        f"eval_ratio={settings.eval_ratio:g} leave it none; change these or bring more rows"
    )


def limits(settings: DataSettings) -> encode.Limits:
    return encode.Limits(
        settings.max_prompt_length,
        settings.max_response_length,
        settings.prompt_truncation,
        settings.response_truncation,
    )


def open_all(settings: DataSettings) -> tuple[list[Store], list[Store]]:
    """The sources to train on, and those that are held out: `eval_data_path`, else the splits that sources have."""
    sources = [parse(spec) for spec in settings.data_path]
    stores = open_stores(sources, settings)
    if settings.eval_data_path:
        return stores, open_stores([parse(spec) for spec in settings.eval_data_path], settings)
    return stores, open_stores([s for s in sources if has_held_out(s)], settings, held_out=True)


def divide(
    stores: Sequence[Store], evaluation: Sequence[Store], settings: DataSettings, *, stage: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(source, row) of a stage's training and of its held-out rows, and the counts of what occurs more than once.

    A prompt is held out when it is in `evaluation`; in a source without a split of its own also by its hash.
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
        fresh = _without_repeats(masks, content)
        repeated += int(sum(m.sum() - f.sum() for m, f in zip(masks, fresh, strict=True)))
        offered = [np.flatnonzero(f) for f in fresh]
        row_keys = [s.column("row_key")[r] for s, r in zip(everything, offered, strict=True)]
        weights = _weights(everything) if masks is train else None
        parts.append(blend(offered, row_keys, weights, seed=seed, limit=limit))
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
    """Where a small set has no held-out prompt by chance, move the two that a larger ratio would hold out first (one of
    fewer than eight) from `train` to `held_out`."""
    prompts = np.unique(np.concatenate([k[t] for k, t in zip(keys, train, strict=True)]))
    prompts = prompts[np.argsort(mix(prompts, seed=seed, salt=HELD_OUT_SALT))]
    chosen = prompts[: min(2, max(1, len(prompts) // 4))] if len(prompts) > 1 else prompts[:0]
    for t, h, k in zip(train, held_out, keys, strict=True):
        h |= t & np.isin(k, chosen)
        t &= ~h


def _without_repeats(masks: Sequence[np.ndarray], content: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The masks, False where an earlier row under them (of this or an earlier source) has the same content."""
    under = np.flatnonzero(np.concatenate(masks))
    fresh = np.zeros(sum(map(len, masks)), dtype=bool)
    fresh[under[first_of_each(np.concatenate(content)[under])]] = True
    return np.split(fresh, np.cumsum([len(m) for m in masks])[:-1])


def _usable(store: Store, kind: encode.Kind) -> np.ndarray:
    """True where a row has what the stage needs."""
    usable = store.has("prompt")
    if kind == "demonstrations":
        usable &= store.has("chosen") & store.column("demonstrates").astype(bool)
    elif kind == "preferences":
        usable &= store.has("chosen") & store.has("rejected")
    return usable


def _weights(stores: Sequence[Store]) -> list[float] | None:
    """None when no source has a weight: then every row is used. A source without one among others counts 1."""
    given = [s.source.weight for s in stores]
    return None if all(w is None for w in given) else [1.0 if w is None else w for w in given]
