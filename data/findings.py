"""The checks of `data.check`, as functions stores → findings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from typing import Literal

import numpy as np

from data.blend import is_held_out, stage_of
from data.config import DataSettings
from data.example import content_hash
from data.remarks import counted, remarks_of
from data.store import Store

Level = Literal["error", "warning", "note"]
PLACES = 3  # that are named for each finding
ENOUGH = 50  # rows before a share means something
TELLING = 0.6  # share of pairs that length alone tells apart
IGNORED = re.compile(r"[\W\d_]+")
ALIKE = " apart from case, digits and punctuation"


@dataclass(frozen=True)
class Finding:
    """One message: an error would stop a run, a warning is a likely mistake, a note is worth knowing."""

    level: Level
    text: str
    places: tuple[str, ...] = ()


def of_source(store: Store, kinds: Iterable[str] = (), elsewhere: Sequence[str] = ()) -> list[Finding]:
    """Rows that cannot be used, answers that teach nothing, and whether length tells chosen from rejected; `kinds` are
    those of the rows that the stages read, `elsewhere` columns that something else reads."""
    name, info = store.source.name, store.info
    level: Level = "warning" if info["known"] else "error"
    found = [
        Finding(level, f"{name}: {count:,} × {what}", tuple(p for p in info["first_bad"] if what[:60] in p))
        for what, count in info["bad"].items()
    ]
    found += [Finding("warning", f"{name}: {line}") for line in counted(remarks_of(info, kinds, elsewhere))]
    if info["silent_rows"]:
        found.append(Finding("note", f"{name}: {info['silent_rows']:,} rows give nothing to learn from (ties, …)"))
    empty: list[str] = []
    same: list[str] = []
    longer = shorter = 0
    columns = ("chosen", "chosen_thoughts", "rejected", "rejected_thoughts", "where")
    for chosen, thoughts, rejected, others, where in chain.from_iterable(store.batches(*columns)):
        if chosen is not None and not chosen.strip():
            empty.append(where)
        if chosen is not None and rejected is not None:
            longer += len(chosen) > len(rejected)
            shorter += len(chosen) < len(rejected)
            if chosen.strip() == rejected.strip() and thoughts == others:
                same.append(where)
    if empty:
        found.append(Finding("warning", f"{name}: {len(empty):,} chosen responses are empty; left out", _few(empty)))
    if same:
        text = f"{name}: in {len(same):,} pairs chosen and rejected are the same; left out of stage 2"
        found.append(Finding("warning", text, _few(same)))
    share = max(longer, shorter) / max(1, longer + shorter)
    if longer + shorter >= ENOUGH and share > TELLING:
        text = (
            f"{name}: chosen is the {'longer' if longer > shorter else 'shorter'} response in {share:.0%} of the pairs"
        )
        found.append(Finding("note", f"{text}: a reward model may learn length alone"))
    return found


def of_repeats(stores: Sequence[Store]) -> list[Finding]:
    """The same row twice, the same prompt with several chosen responses, and opposite judgements."""
    names = ("prompt_key", "chosen_key", "rejected_key", "row_key")
    prompts, chosen, rejected, rows = (np.concatenate([s.column(n) for s in stores]) for n in names)
    found = []
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    if (repeated := int((counts - 1).sum())) > 0:
        text = f"{repeated:,} rows repeat another row; they are used once"
        found.append(Finding("note", text, _places(stores, first[counts > 1])))
    keys = [np.unique(s.column("prompt_key")) for s in stores]
    if common := sum(map(len, keys)) - len(np.unique(np.concatenate(keys))):
        found.append(Finding("note", f"{common:,} prompts are in more than one source"))

    answered = np.flatnonzero(np.concatenate([s.has("chosen") for s in stores]))
    answered = answered[np.sort(np.unique(chosen[answered], return_index=True)[1])]  # each prompt and response once
    _, first, counts = np.unique(prompts[answered], return_index=True, return_counts=True)
    if several := int((counts > 1).sum()):
        text = f"{several:,} prompts have several different chosen responses; stage 3 uses each prompt once"
        found.append(Finding("note", text, _places(stores, answered[first[counts > 1]])))
    pairs = np.flatnonzero(np.concatenate([s.has("chosen") & s.has("rejected") for s in stores]))
    judged = np.stack([chosen[pairs], rejected[pairs]], axis=1)
    judged = judged[judged[:, 0] != judged[:, 1]]
    known = set(map(bytes, np.ascontiguousarray(judged)))
    opposite = [i for i, pair in enumerate(judged) if bytes(pair[::-1].copy()) in known]
    if opposite:
        text = f"{len(opposite):,} pairs contradict another pair: the same two responses, judged the other way round"
        found.append(Finding("warning", text, _places(stores, pairs[opposite])))
    return found


def of_leakage(stores: Sequence[Store], evaluation: Sequence[Store], settings: DataSettings) -> list[Finding]:
    """Prompts of different stages, or held out and trained on, that differ only in case, digits and punctuation."""
    everything = [*stores, *evaluation]
    key = np.concatenate([s.column("prompt_key") for s in everything])
    form = np.concatenate([_forms(s) for s in everything])
    stage = stage_of(key, settings.shares, seed=settings.data_seed)
    if evaluation:
        held_out = np.arange(len(key)) >= sum(len(s.dataset) for s in stores)
    else:
        held_out = is_held_out(key, settings.eval_ratio, seed=settings.data_seed)
    _, once = np.unique(key, return_index=True)  # prompts, not rows
    form, stage, held_out = form[once], stage[once], held_out[once]
    twins = _in_several(form[~held_out], stage[~held_out])
    tested = held_out & _in_several(form, held_out)
    found = []
    if twins.any():
        text = (
            f"{int(twins.sum()):,} of {len(twins):,} prompts that are trained on are like one of another stage{ALIKE}"
        )
        found.append(Finding("note", text, _places(everything, once[~held_out][twins])))
    if tested.any():
        count = f"{int(tested.sum()):,} of {int(held_out.sum()):,}"
        text = f"{count} prompts that are held out are like one that is trained on{ALIKE}"
        found.append(Finding("note", text, _places(everything, once[tested])))
    return found


def _in_several(form: np.ndarray, group: np.ndarray) -> np.ndarray:
    """True where the same form also occurs in another group."""
    pairs = np.unique(np.stack([form, group.astype(np.uint64)]), axis=1)
    forms, counts = np.unique(pairs[0], return_counts=True)
    return np.isin(form, forms[counts > 1])


def opening(store: Store) -> str:
    """The text that the prompts of a source's first two thousand rows all begin with; most often an instruction."""
    texts = [json.loads(prompt) for batch in islice(store.batches("prompt"), 2) for (prompt,) in batch if prompt]
    starts = [next(m["content"] for m in turns if m["role"] == "user") for turns in texts]
    if len(starts) < ENOUGH:
        return ""
    first, last = min(starts), max(starts)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))).strip()


def _forms(store: Store) -> np.ndarray:
    """A hash of each prompt without case, digits and punctuation."""
    texts = (prompt or text or "" for batch in store.batches("prompt", "text") for prompt, text in batch)
    forms = (content_hash(IGNORED.sub(" ", text.lower())) for text in texts)
    return np.fromiter(forms, dtype=np.uint64, count=len(store.dataset))


def _places(stores: Sequence[Store], rows: np.ndarray) -> tuple[str, ...]:
    """Where rows are, counted over all stores."""
    starts = np.cumsum([0] + [len(s.dataset) for s in stores])
    places = []
    for row in np.sort(rows)[:PLACES].tolist():
        number = int(np.searchsorted(starts, row, side="right")) - 1
        places.append(stores[number].place(row - int(starts[number])))
    return tuple(places)


def _few(places: Sequence[str]) -> tuple[str, ...]:
    return tuple(places[:PLACES])
