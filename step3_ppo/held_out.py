"""The prompts that stage 3 holds out, for the evaluation after it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.kept import read_kept
from rlhf import process
from rlhf.json_lines import write_json_lines
from rlhf.rendering import OF_THE_FIRST

HELD_OUT_NAME = "held_out_prompts.jsonl"


def write_held_out_prompts(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `folder/held_out_prompts.jsonl`, from rank 0: {"prompt": messages} a line, and the columns that rewards
    read; then a prompt that the data have as text is text."""
    if process.is_main():
        write_json_lines(folder / HELD_OUT_NAME, map(_line, rows))


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    messages = json.loads(row["messages"])
    if "kept" not in row:
        return {"prompt": messages}
    is_text, columns = read_kept(row["kept"])
    plain = is_text and not any(name in messages[-1] for name in OF_THE_FIRST)
    return {**columns, "prompt": messages[-1]["content"] if plain else messages}
