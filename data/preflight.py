"""Problems of the data that are found before torch is loaded: missing and broken files, unknown columns, bad rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from data.blend import stage_of
from data.config import DataSettings, PretrainingMixSettings, SourceSettings
from data.divide import KINDS, NEEDS
from data.encode import Kind
from data.example import Example, prompt_hash
from data.hub import unreachable
from data.kept import Kept
from data.reading import Reader
from data.recognise import parse_columns
from data.remarks import counted
from data.sources import parse
from data.store import unmapped
from rlhf.errors import UserError
from rlhf.files import is_text
from rlhf.template import Message

LOOK_AT = 2000  # rows of each source; the rest is checked when it is read


def problems(
    settings: SourceSettings,
    *,
    stage: int | None = None,
    kind: Kind | None = None,
    demonstrations: bool = True,
    ask_hub: bool = True,
    kept: Kept | None = None,
) -> list[str]:
    """One line for each problem of the sources that `settings` name, as the data of `stage` if one is given (rows of
    `kind`, where that is not the stage's own; `demonstrations` as in `data.divide`), of which columns are `kept`. With
    `ask_hub` the hub is asked whether its datasets exist; they are not loaded."""
    found: list[str] = []
    if isinstance(settings, DataSettings):
        if not settings.data_path:
            found.append(
                "data_path is needed: give --data-path a file (.jsonl, .json, .csv, .parquet, …) or a hub dataset"
            )
        specs = [*settings.data_path, *settings.eval_data_path]
        found += look_at(
            specs, settings, stage=stage, kind=kind, demonstrations=demonstrations, ask_hub=ask_hub, kept=kept
        )
        if stage is not None and not settings.shares[stage - 1]:
            found.append(f"data_split={settings.data_split} leaves stage {stage} no rows; give it a share, or skip it")
    if isinstance(settings, PretrainingMixSettings):
        found += look_at(settings.ptx_data, settings.reading(), ask_hub=ask_hub)
    cache = settings.data_cache_dir
    if cache is not None and cache.exists() and not cache.is_dir():
        found.append(f"data_cache_dir {cache} is a file; name a folder")
    if cache is not None and not is_text(str(cache)):
        found.append(f"data_cache_dir {cache} is not UTF-8 text; name another folder")
    return list(dict.fromkeys(found))


def look_at(
    specs: Sequence[str],
    settings: SourceSettings,
    *,
    stage: int | None = None,
    kind: Kind | None = None,
    demonstrations: bool = True,
    ask_hub: bool = True,
    kept: Kept | None = None,
) -> list[str]:
    """The problems of sources that their first rows show."""
    kind = kind or (KINDS[stage] if stage is not None else None)
    seen: set[str] = set()
    found: list[str] = []
    readers: list[Reader] = []
    held_out: list[Reader] = []
    weights: list[float] = []
    try:
        parse_columns(settings.columns)
    except UserError as error:
        return error.problems
    for spec in specs:
        try:
            source = parse(spec)
            weights.append(1.0 if source.weight is None else source.weight)
            if source.hub:
                found += filter(None, [unreachable(source.hub) if ask_hub else None])
                continue
            reader = Reader(source, settings, limit=LOOK_AT, kept=kept)
            served: set[str] = set().union(*(_serves(example, kind) for _, example in reader))
            if demonstrations or served != {"good"} or reader.read == LOOK_AT:
                seen |= served
            readers.append(reader)
            if source.held_out_files:
                held_out.append(Reader(source, settings, held_out=True, limit=LOOK_AT, kept=kept))
                list(held_out[-1])
        except UserError as error:
            found += error.problems
    if kind is not None and specs and len(readers) == len(specs):
        if not seen:
            why = "; ".join(line for r in readers for line in (*counted(r.remarks), f"they are read as {r.says}"))
            found.append(f"stage {stage} needs rows with {NEEDS[kind]}; the sources have none ({why})")
        elif kind == "unpaired" and len(seen) == 1 and all(reader.read < LOOK_AT for reader in readers):
            found.append(
                f"stage {stage} needs good and bad responses, by pairs or by a label; all that the sources have are "
                f"{seen.pop()}"
            )
    if weights and len(weights) == len(specs) and not sum(weights):
        found.append("the weights of all sources are 0; one must be above 0")
    if settings.columns and readers and len(readers) == len(specs) and not any(r.mapped for r in readers):
        found.append(unmapped(settings.columns))
    if kept is not None and readers and len(readers) == len(specs):
        trained = len(settings.data_path) if isinstance(settings, DataSettings) else len(readers)
        for group in (readers[:trained], readers[trained:], held_out):
            found += kept.problems({column for reader in group for column in reader.columns}) if group else []
    return found


def unusual_prompts(settings: DataSettings) -> dict[str, list[Message]]:
    """Prompts of stage 3 that are more than questions and answers (a turn of the system, tools, calls), by their
    places: the first one of each form among the first rows of each source. Sources that cannot be read have none."""
    found: dict[str, list[Message]] = {}
    forms = set()
    for number, spec in enumerate([*settings.data_path, *settings.eval_data_path]):
        source = parse(spec)
        if source.hub:
            continue
        with contextlib.suppress(UserError):
            for place, example in Reader(source, settings, limit=LOOK_AT):
                form = tuple((m["role"], *sorted(set(m) - {"role", "content"})) for m in example.prompt)
                if form in forms or all(turn in (("user",), ("assistant",)) for turn in form):
                    continue
                key = np.array([prompt_hash(example.prompt)], np.uint64)
                stage = stage_of(key, settings.shares, seed=settings.data_seed)[0]
                if number >= len(settings.data_path) or stage == 3:
                    forms.add(form)
                    found[str(place)] = list(example.prompt)
    return found


def _serves(example: Example, kind: Kind | None) -> set[str]:
    """What a row gives to rows of `kind`: nothing, or a name; of single responses whether they are good or bad."""
    both = {"good": example.chosen is not None, "bad": example.rejected is not None}
    if kind == "unpaired":
        return {name for name, there in both.items() if there and example.prompt}
    fits = {"demonstrations": both["good"], "preferences": all(both.values())}.get(kind or "", bool(example.prompt))
    return {"row"} if fits else set()
