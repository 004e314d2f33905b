"""How many rows a stage will train on, about, and what counts in them, before all is read: for the hours and the memory
in a plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from data.adapters import KNOWN, no_robots
from data.config import DataSettings, SourceSettings
from data.reading import Reader
from data.sources import Source, parse
from rlhf.errors import UserError

# Rows of the training splits of datasets that recipes and examples name, as the hub shows them.
HUB_ROWS = {
    "Dahoas/rm-static": 76_256,
    "Dahoas/full-hh-rlhf": 112_052,
    "Dahoas/synthetic-instruct-gptj-pairwise": 33_143,
    "HuggingFaceH4/ultrafeedback_binarized": 61_135,
    "Anthropic/hh-rlhf": 160_800,
    "openai/summarize_from_feedback": 92_858,
}
_LINES = (".jsonl", ".csv")  # one row is about one line
_LARGEST = 1 << 30  # bytes of a file whose lines are counted
_LOOK_AT = 200  # rows


def expected_rows(settings: DataSettings, *, stage: int) -> int | None:
    """The stage's share of the rows of all sources, less the held-out part; None where a source does not tell, and
    where sources are weighted. Rows that are left out (duplicates, too long) are not known."""
    total = 0
    for spec in settings.data_path:
        try:
            source = parse(spec)
        except UserError:
            return None
        rows = None if source.weight is not None else _rows(source)
        if rows is None:
            return None
        total += rows
    if not total:
        return None
    count = int(total * settings.shares[stage - 1] / sum(settings.shares) * (1 - settings.eval_ratio))
    return max(min(count, settings.max_samples or count), 1)


def learns_earlier_turns(settings: SourceSettings, specs: Sequence[str]) -> bool:
    """Whether stage 1 learns assistant turns before the last one, by the first rows of each source. Of a hub dataset
    that has no function of its own it is not known, and may be."""
    reading = settings.model_copy(update={"skip_bad_rows": True})
    for spec in specs:
        try:
            source = parse(spec)
            if source.hub:
                known = KNOWN.get(source.hub.name)
                found = known is None or known.adapt is no_robots
            else:
                found = any(example.learned for _, example in Reader(source, reading, limit=_LOOK_AT))
        except UserError:  # which the checks of the data name
            continue
        if found:
            return True
    return False


def _rows(source: Source) -> int | None:
    if source.hub:
        return HUB_ROWS.get(source.hub.name)
    total = 0
    for file in source.files:
        path = file.path
        try:
            if path is None or file.packing or file.kind not in _LINES or (known := path.stat()).st_size > _LARGEST:
                return None
            total += _lines(path, known.st_size, known.st_mtime_ns)
        except OSError:
            return None
    return total or None


@lru_cache(maxsize=64)
def _lines(file: Path, size: int, changed: int) -> int:
    """Lines of a file without a header; `size` and `changed` tell another content of the same name."""
    with file.open("rb") as opened:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: opened.read(1 << 20), b""))
    return max(lines - (file.suffix.lower() == ".csv"), 1)
