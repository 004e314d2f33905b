"""What stage 3 holds out is what the evaluation after it asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf.evaluate.evaluation import read_prompts
from step3_ppo.held_out import HELD_OUT_NAME, write_held_out_prompts

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
QUESTION = {"role": "user", "content": "Weather?"}


def test_prompts_with_tools_are_asked_as_they_were(tmp_path: Path) -> None:
    """A prompt that ends with what a tool gave would have been no prompt for the evaluation, at the end of a run; and
    one that is text in the data would have lost its tools."""
    prompts: list[list[dict[str, Any]]] = [
        [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "sun"}],
        [{**QUESTION, "tools": [CALL]}],
        [QUESTION],
    ]
    kept = json.dumps({"text": True, "columns": {"answer": "4"}})
    rows = [{"messages": json.dumps(prompts[0])}, *({"messages": json.dumps(p), "kept": kept} for p in prompts[1:])]
    write_held_out_prompts(rows, tmp_path)
    asked = read_prompts(tmp_path / HELD_OUT_NAME)
    assert [a.messages for a in asked] == prompts
    assert [a.is_text for a in asked] == [False, False, True]
    assert [a.columns for a in asked] == [{}, {"answer": "4"}, {"answer": "4"}]
