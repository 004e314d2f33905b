"""The prompts that stage 3 leaves aside, for the evaluation after it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf import process
from rlhf.files import write_text


def write_held_out_prompts(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `folder/held_out_prompts.jsonl`, from rank 0: {"prompt": messages} a line."""
    if process.is_main():
        lines = (json.dumps({"prompt": json.loads(row["messages"])}, ensure_ascii=False) for row in rows)
        write_text(folder / "held_out_prompts.jsonl", "".join(f"{line}\n" for line in lines))
