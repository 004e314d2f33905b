"""data/expected.py: about how many rows a stage will train on, before anything is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.config import DataSettings
from data.expected import HUB_ROWS, expected_rows, learns_earlier_turns


def rows(*sources: object, stage: int = 3, **settings: Any) -> int | None:
    return expected_rows(DataSettings(data_path=[str(source) for source in sources], **settings), stage=stage)


def test_lines_of_files_and_known_datasets_are_shared_out(tmp_path: Path) -> None:
    """A fifth of the prompts is stage 1's, two fifths are stage 2's and stage 3's; a twentieth is held out."""
    (tmp_path / "a.jsonl").write_text("{}\n" * 1000)
    (tmp_path / "b.csv").write_text("prompt,chosen\n" + "x,y\n" * 500)
    assert rows(tmp_path / "a.jsonl", stage=1) == 190
    assert rows(tmp_path / "a.jsonl", tmp_path / "b.csv") == 570
    assert rows(tmp_path / "a.jsonl", "Dahoas/rm-static") == int((1000 + HUB_ROWS["Dahoas/rm-static"]) * 0.4 * 0.95)
    assert rows(tmp_path / "a.jsonl", max_samples=20) == 20


def test_a_file_that_grew_is_counted_again(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n" * 100)
    assert rows(file) == 38
    file.write_text("{}\n" * 1000)
    assert rows(file) == 380


def test_what_does_not_tell_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n" * 100)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert rows() is None
    assert rows("org/unknown") is None
    assert rows(tmp_path / "a.parquet") is None
    assert rows(tmp_path / "none.jsonl") is None
    assert rows(f"{tmp_path / 'a.jsonl'}:2") is None  # weighted: the blend decides
    assert rows(tmp_path / "a.jsonl", "org/unknown") is None


def test_the_plan_knows_whether_earlier_turns_count(tmp_path: Path) -> None:
    """Then any token of a row may get a log-probability, not only those of the longest response."""
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    for name, row in {
        "talks": {"messages": turns},
        "single": {"messages": turns[:2]},
        "pairs": {"prompt": turns[:3], "chosen": "a", "rejected": "b"},
        "broken": {"messages": 3},
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for names, known in ((["talks"], True), (["single", "pairs", "broken", "none"], False), (["pairs", "talks"], True)):
        assert learns_earlier_turns(DataSettings(), [str(tmp_path / f"{name}.jsonl") for name in names]) == known
    assert learns_earlier_turns(DataSettings(), ["HuggingFaceH4/no_robots"])
    assert not learns_earlier_turns(DataSettings(), ["Dahoas/rm-static"])
