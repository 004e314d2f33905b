"""The prompts that stage 3 holds out, for the evaluation after it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf import process
from rlhf.json_lines import write_json_lines

HELD_OUT_NAME = "held_out_prompts.jsonl"


def write_held_out_prompts(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `folder/held_out_prompts.jsonl`, from rank 0: {"prompt": messages} a line."""
    if process.is_main():
        write_json_lines(folder / HELD_OUT_NAME, ({"prompt": json.loads(row["messages"])} for row in rows))
