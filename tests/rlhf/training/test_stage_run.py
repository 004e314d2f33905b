"""The bookkeeping of a loop, by a loop of five lines: what a resumed run finds, what is logged, what ends it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import DataError, Terminated, TrainingError
from rlhf.metrics import read_metrics
from rlhf.stage_config import RunSettings
from rlhf.training.engine import TrainEngine
from rlhf.training.stage_run import StageRun
from tests.helpers import engines

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
TOTAL = 5
SOURCES = [{"fingerprint": "a"}]


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def train(one_rank: None) -> TrainEngine:
    return engines.engine(1)


def open_run(folder: Path, train: TrainEngine, *, sources: Any = SOURCES, **changes: Any) -> StageRun:
    values: dict[str, Any] = {"save_every": 2, "seed": 3} | changes
    config = RunSettings(output_dir=folder, **values)
    state = {"sum": 0.0}
    return StageRun(config, name="toy", total=TOTAL, engines={"model": train}, sources=sources, state=state)


def loop(run: StageRun, *, skip: Callable[[int], bool] = lambda number: False, at: Any = None) -> None:
    """Each step draws a number and adds it to the state; `at` = (number, what happens in the middle of that step)."""
    if run.is_new:
        run.log({"toy/sum": 0.0})
    with run.steps() as steps:
        for step in steps:
            assert run.number == step + 1
            run.state["sum"] += float(torch.rand(()))
            if at and at[0] == run.number:
                at[1]()
            run.log({"toy/sum": run.state["sum"], "toy/other": 1.0}, shown=("toy/sum", "toy/not_there"))
            run.save(score=-run.state["sum"], skipped=skip(run.number), rows=lambda n=run.number: [{"step": n}])


def _die() -> None:
    raise Killed


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_resumed_run_goes_on_as_if_nothing_had_been(train: TrainEngine, tmp_path: Path, capsys: Any) -> None:
    """It dies in step 4, whose predecessor is logged; the checkpoint is of step 2. State, random numbers and metrics
    are those of a run that nobody interrupted."""
    loop(open_run(tmp_path / "whole", train))
    with pytest.raises(Killed):
        loop(open_run(tmp_path / "cut", train), at=(4, _die))
    assert [row["step"] for row in read_metrics(tmp_path / "cut/metrics.jsonl")] == [0, 1, 2, 3]
    capsys.readouterr()
    resumed = open_run(tmp_path / "cut", train)
    assert "resumed after step 2 of 5" in capsys.readouterr().out
    assert (resumed.is_new, resumed.start) == (False, 2)
    assert [row["step"] for row in read_metrics(tmp_path / "cut/metrics.jsonl")] == [0, 1, 2]  # cut to the checkpoint
    loop(resumed)
    assert (tmp_path / "cut/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    assert [row["step"] for row in read_metrics(tmp_path / "cut/metrics.jsonl")] == [0, 1, 2, 3, 4, 5]


def test_a_finished_run_has_no_steps_left(train: TrainEngine, tmp_path: Path) -> None:
    loop(open_run(tmp_path, train))
    again = open_run(tmp_path, train)
    with again.steps() as steps:
        assert list(steps) == []
    assert again.state["sum"] > 0


def test_weights_come_back_with_the_state(tmp_path: Path) -> None:
    first, second = engines.engine(1), engines.engine(1)
    engines.steps(first, 4)
    loop(open_run(tmp_path, first))
    assert engines.furthest(engines.weights(first), engines.weights(second)) > 0
    open_run(tmp_path, second)
    assert engines.furthest(engines.weights(first), engines.weights(second)) == 0
    assert second.steps_done == first.steps_done


def test_other_data_are_not_gone_on_with(train: TrainEngine, tmp_path: Path) -> None:
    loop(open_run(tmp_path, train))
    with pytest.raises(DataError, match="put the old ones back"):
        open_run(tmp_path, train, sources=[{"fingerprint": "b"}])


def test_what_is_due(train: TrainEngine, tmp_path: Path) -> None:
    """Every second step and the last of five; rows of metrics likewise, and one that is wanted in any case."""
    run = open_run(tmp_path, train, log_every=2, save_every=100)
    due = []
    with run.steps() as steps:
        for step in steps:
            due.append((run.is_due(2), run.is_due(None), run.is_last))
            run.log({"toy/step": float(step)}, always=run.number == 3)
            run.save()
    assert due == [(n in (2, 4, 5), n == 5, n == 5) for n in range(1, 6)]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 3, 4, 5]
    assert checkpoints(tmp_path) == ["step-00000005"]


def test_the_best_checkpoint_stays_beside_the_newest(train: TrainEngine, tmp_path: Path) -> None:
    """Scores fall from step to step, so the first is the best."""
    loop(open_run(tmp_path, train, save_every=1, keep_checkpoints=1))
    assert checkpoints(tmp_path) == ["step-00000001", "step-00000005"]


def test_too_many_bad_steps_end_the_run_with_a_checkpoint(train: TrainEngine, tmp_path: Path) -> None:
    """Step 1 alone is bad, which is survived; then 3 and 4 in a row, and the limit is 2. Step 4's checkpoint is due
    for no other reason."""
    with pytest.raises(TrainingError, match="2 steps in a row were not finite"):
        loop(open_run(tmp_path, train, max_skipped_steps=2, save_every=100), skip=lambda number: number != 2)
    assert checkpoints(tmp_path) == ["step-00000004"]
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "bad_batches").iterdir()}
    assert kept == {f"step-{n:08}-rank-00000.jsonl": {"step": n} for n in (1, 3, 4)}


def test_a_signal_waits_for_the_end_of_the_step(train: TrainEngine, tmp_path: Path, capsys: Any) -> None:
    """Step 3 is logged and saved although no checkpoint was due; signals are the process's own again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        loop(open_run(tmp_path, train), at=(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) == before
    assert "a checkpoint of step 3 is written" in capsys.readouterr().out
    assert checkpoints(tmp_path) == ["step-00000002", "step-00000003"]
    assert open_run(tmp_path, train).start == 3


def _on_two_ranks(folder: str) -> tuple[list[str], float]:
    """A signal to rank 1 alone stops both after step 3; both go on from there to the same end."""
    train = engines.engine(2)

    def act() -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        loop(open_run(Path(folder), train), at=(3, act))
    written = checkpoints(Path(folder))
    resumed = open_run(Path(folder), train)
    assert resumed.start == 3
    loop(resumed)
    return written, resumed.state["sum"]


def test_two_ranks_stop_and_go_on_together(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    found = run_ranks(_on_two_ranks, str(tmp_path))
    assert [written for written, _ in found] == [["step-00000002", "step-00000003"]] * 2
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(TOTAL + 1))
