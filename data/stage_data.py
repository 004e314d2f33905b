"""The rows that a stage gets: sources read, split over the stages, blended, tokenised into the cache, and reported.

    demonstrations  stage 1    {"input_ids", "prompt_length", "learned"}
    preferences     stage 2    {"prompt_ids", "chosen_ids", "rejected_ids", "margin"}
    unpaired        stage 2    {"prompt_ids", "prompt_length", "response_ids", "desirable"}
    prompts         stage 3    {"prompt_ids", "messages"}, and "kept" where rewards read columns (`data.kept`)
    pretraining     stage 3    {"input_ids"}

Rows also have "source" (its name) and "length" (tokens). Every process of a run may call these functions at any
time: one builds, the others wait. Nothing here needs a process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import encode
from data.announcement import announce, announce_pretraining, of_one_kind, said_of_kinds
from data.blend import blend
from data.config import DataSettings, PretrainingMixSettings
from data.divide import KINDS, NEEDS, divide, open_all, weights, without_repeats
from data.kept import Kept
from data.packing import PackedRows
from data.remarks import remarks_of
from data.rows import Rows
from data.sources import parse
from data.store import Store, open_stores
from data.texts import TextEncoder
from data.tokens import encoded
from rlhf import process
from rlhf.console import say, warn
from rlhf.errors import DataError
from rlhf.files import write_yaml
from rlhf.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class StageData:
    """What a stage trains on and what it evaluates on; `report` says what it got and what was left out."""

    train: Rows | PackedRows
    held_out: Rows
    report: dict[str, Any] = field(default_factory=dict)

    def record(self, folder: Path) -> None:
        """Write the report to `folder/data.yaml`, from rank 0."""
        if process.is_main():
            write_yaml(folder / "data.yaml", self.report)


def demonstrations(
    settings: DataSettings, template: Template, *, packing: bool = False, learn: encode.Learn = "all"
) -> StageData:
    """Prompts with their chosen response, for stage 1; with `packing` several of them in a training row. `learn` says
    which assistant turns of a conversation count."""
    data = _stage(settings, template, stage=1, learn=learn)
    if problem := template.marks_problem():
        warn(problem)
    if packing and isinstance(data.train, Rows):
        rows = data.train
        data.train = PackedRows(rows, settings.max_prompt_length + settings.max_response_length)
        data.report["train"]["packs"] = len(data.train)
        say(f"packing: {len(rows):,} demonstrations in {len(data.train):,} rows")
    return data


def preferences(settings: DataSettings, template: Template) -> StageData:
    """Prompts with a chosen and a rejected response, for stage 2."""
    return _stage(settings, template, stage=2)


def unpaired(settings: DataSettings, template: Template, *, demonstrations: bool = True) -> StageData:
    """Prompts with one response that is good or bad, for stage 2; a pair gives one of each. `demonstrations`: of
    sources that have no bad responses too. Raises DataError where all are good, or all bad."""
    data = _stage(settings, template, stage=2, kind="unpaired", demonstrations=demonstrations)
    assert isinstance(data.train, Rows)
    for part, rows in (("train", data.train), ("held_out", data.held_out)):
        good = int(rows.column("desirable").sum())
        data.report[part]["desirable"] = good
        say(said_of_kinds(part, good, len(rows) - good))
        if line := of_one_kind(part, good, len(rows) - good):
            if part == "train":
                raise DataError(line)
            warn(line)
    return data


def prompts(settings: DataSettings, template: Template, *, kept: Kept | None = None) -> StageData:
    """Prompts, each once, for stage 3; with what is `kept` of their rows, of the first row of each prompt."""
    return _stage(settings, template, stage=3, kept=kept)


def pretraining(settings: PretrainingMixSettings, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Blocks of `ptx_length` ids of plain text, for the pretraining mix."""
    stores = open_stores([parse(spec) for spec in settings.ptx_data], settings.reading())
    texts = without_repeats([s.has("text") for s in stores], [s.column("row_key") for s in stores])
    offered = [np.flatnonzero(t) for t in texts]
    if not any(len(rows) for rows in offered):
        raise DataError("ptx_data has no plain text: it needs a column 'text' (or --ptx-column NAME)")
    table = blend(
        offered, [s.column("row_key")[r] for s, r in zip(stores, offered, strict=True)], weights(stores),
        seed=settings.data_seed,
    )  # fmt: skip
    dataset, report = encoded(stores, table, TextEncoder(tokenizer, settings.ptx_length), settings)
    counts = np.bincount(table[:, 0], minlength=len(stores)).tolist()
    report["sources"] = [_of_source(s) | {"texts": n} for s, n in zip(stores, counts, strict=True)]
    announce_pretraining(report)
    return Rows(dataset, [s.source.name for s in stores], report)


# --- split and blend -------------------------------------------------------------------------------------------------


def _stage(
    settings: DataSettings,
    template: Template,
    *,
    stage: int,
    kind: encode.Kind | None = None,
    kept: Kept | None = None,
    demonstrations: bool = True,
    learn: encode.Learn = "all",
) -> StageData:
    if not settings.data_path:
        raise DataError("data_path is needed: give --data-path a file, a folder or a hub dataset")
    kind = kind or KINDS[stage]
    stores, evaluation = open_all(settings, kept=kept)
    everything = [*stores, *evaluation]
    names = [s.source.name for s in everything]
    train, held_out, duplicates = divide(
        stores, evaluation, settings, stage=stage, kind=kind, demonstrations=demonstrations
    )
    encoder = encode.Encoder(
        template, limits(settings), kind, skip_bad_rows=settings.skip_bad_rows, kept=kept is not None, learn=learn
    )
    report: dict[str, Any] = {
        "stage": stage,
        "data_split": settings.data_split,
        "data_seed": settings.data_seed,
        "sources": [
            _of_source(store, kind, settings.read_elsewhere)
            | {"train": int((train[:, 0] == i).sum()), "held_out": int((held_out[:, 0] == i).sum())}
            for i, store in enumerate(everything)
        ],
        "duplicates": duplicates,
        **({"margins": any(s.column("margin").any() for s in stores)} if kind == "unpaired" else {}),
    }
    parts = []
    for name, table in (("train", train), ("held_out", held_out)):
        dataset, report[name] = encoded(everything, table, encoder, settings)
        parts.append(Rows(dataset, names))
        if not len(dataset):
            raise DataError(_nothing_left(name, report, settings, kind))
    announce(report)
    return StageData(parts[0], parts[1], report)


def _of_source(store: Store, kind: encode.Kind | None = None, elsewhere: Sequence[str] = ()) -> dict[str, Any]:
    """A source's part of the report."""
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
        "empty": store.info["empty"],
        "remarks": remarks_of(store.info, [kind], elsewhere),
    }


def _nothing_left(part: str, report: dict[str, Any], settings: DataSettings, kind: encode.Kind) -> str:
    """Why a stage has no rows, and the way out."""
    start = f"stage {report['stage']} has no {part.replace('_', '-')} rows"
    if dropped := report[part]["dropped"]:
        return f"{start}: all were dropped ({'; '.join(f'{n} × {why}' for why, n in dropped.items())})"
    return (
        f"{start}: either the sources have no rows with {NEEDS[kind]}, or data_split={settings.data_split} and "
        f"eval_ratio={settings.eval_ratio:g} leave none for it; change these or add rows"
    )


def limits(settings: DataSettings) -> encode.Limits:
    return encode.Limits(
        settings.max_prompt_length,
        settings.max_response_length,
        settings.prompt_truncation,
        settings.response_truncation,
    )
