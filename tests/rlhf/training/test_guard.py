"""Steps that are not finite are skipped, their rows kept; too many in a row end the run with a checkpoint."""

from __future__ import annotations

import json

import pytest

from rlhf.errors import TrainingError
from rlhf.training.guard import Guard


def test_rows_of_a_skipped_step_are_kept_and_the_limit_ends_the_run(tmp_path):
    saved: list[int] = []
    guard = Guard(tmp_path / "bad_batches", limit=2)

    def watch(step, skipped):
        guard.watch(step=step, skipped=skipped, batch=lambda: [{"input_ids": [step]}], save=lambda: saved.append(step))

    watch(1, True)
    watch(2, False)  # a step that was applied starts the count again
    watch(3, True)
    assert not saved
    with pytest.raises(TrainingError, match="2 steps in a row") as ended:
        watch(4, True)
    assert saved == [4]
    assert "bad_batches" in str(ended.value)
    kept = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert kept == [f"step-0000000{step}-rank-00000.jsonl" for step in (1, 3, 4)]
    assert json.loads((tmp_path / "bad_batches" / kept[1]).read_text()) == {"input_ids": [3]}


def test_an_applied_step_writes_nothing(tmp_path):
    Guard(tmp_path / "bad_batches", limit=1).watch(
        step=1, skipped=False, batch=lambda: pytest.fail("not asked for"), save=lambda: pytest.fail("not saved")
    )
    assert not (tmp_path / "bad_batches").exists()
