"""metrics.jsonl: whole lines of valid JSON, cut where a run resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rlhf.errors import ConfigError, DataError
from rlhf.metrics import MetricsLog, read_metrics, tracker_problems


def test_rows_come_back(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(1, {"sft/loss": np.float32(0.5), "sft/steps": 3})
        log.log(2, {"sft/loss": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "sft/loss": 0.5, "sft/steps": 3},
        {"step": 2, "sft/loss": 0.25},
    ]


def test_every_row_is_there_at_once(tmp_path: Path) -> None:
    """A run that is killed keeps what it logged: nothing waits in a buffer."""
    log = MetricsLog(tmp_path)
    log.log(1, {"sft/loss": 0.5})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_what_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    """JSON has no NaN: `jq` and browsers would refuse the whole file."""
    with MetricsLog(tmp_path) as log:
        log.log(1, {"sft/loss": math.nan, "sft/grad_norm": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "sft/loss": None, "sft/grad_norm": None}
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["sft/loss"])


def test_a_resumed_run_cuts_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    """The checkpoint is of step 2, the killed run had logged step 3 and half of step 4: steps 3 and 4 are run again."""
    with MetricsLog(tmp_path) as log:
        for step in (0, 1, 2, 3):
            log.log(step, {"sft/loss": step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "sft/lo')
    with MetricsLog(tmp_path, resume_step=2) as log:
        log.log(3, {"sft/loss": 30})
    assert [(row["step"], row["sft/loss"]) for row in read_metrics(path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(1, {"sft/loss": 1})
    MetricsLog(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.process._Program.is_rank", True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with MetricsLog(tmp_path) as log:
        log.log(1, {"sft/loss": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2 is not a row of metrics"):
        read_metrics(path)


def test_a_tracker_that_is_not_installed_is_named_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tracker_problems(["wandb"]) == ["trackers: wandb is not installed; pip install wandb, or leave it out"]
    with pytest.raises(ConfigError, match="tensorboard is not installed"):
        MetricsLog(tmp_path, trackers=["tensorboard"])
    assert list(tmp_path.iterdir()) == []
