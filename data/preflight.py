"""What can be said about the data before torch is loaded: missing and broken files, unknown columns, bad rows."""

from __future__ import annotations

from pathlib import Path

from data.config import DataSettings, PretrainingMixSettings, SourceSettings
from data.sources import parse
from data.store import problems as source_problems
from rlhf.errors import UserError

LOOK_AT = 2000  # rows of each source; the rest is checked when it is read


def problems(settings: SourceSettings) -> list[str]:
    """One line for each thing that is wrong with the sources that `settings` name; hub datasets are not loaded here."""
    found: list[str] = []
    specs: list[str] = []
    if isinstance(settings, DataSettings):
        if not settings.data_path:
            found.append("data_path is needed: give --data-path a .jsonl, .json, .csv or .parquet file, or a hub dataset")
        specs += [*settings.data_path, *settings.eval_data_path]
    if isinstance(settings, PretrainingMixSettings):
        specs += settings.ptx_data
    for spec in specs:
        try:
            source = parse(spec)
        except UserError as error:
            found += error.problems
            continue
        if not source.hub:
            found += [line for line in source_problems(source, settings, limit=LOOK_AT) if line not in found]
    return found + _cache_problems(settings)


def _cache_problems(settings: SourceSettings) -> list[str]:
    folder = settings.data_cache_dir
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        return [f"data_cache_dir {folder} is a file; name a folder"]
    return []
