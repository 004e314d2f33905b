"""What is damaged or could not be written costs nothing that was complete, and says so in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from rlhf.errors import EXIT_USER, DataError, TrainingError, UserError, error_lines
from rlhf.training import checkpoint as module
from rlhf.training import distributed
from rlhf.training.checkpoint import STATE_NAME, Checkpoint, Checkpoints
from rlhf.training.engine import TrainEngine
from tests.helpers import engines
from tests.helpers.tiny import tiny_lm

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def train(one_rank: None) -> TrainEngine:
    return engines.engine(1)


def save(folder: Path, train: TrainEngine, step: int, **more: Any) -> None:
    Checkpoints(folder, keep=2).save(step, {"model": train}, {"note": step}, **more)


def latest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder, keep=2).latest()
    assert found is not None
    return found


def test_a_checkpoint_can_be_read_by_those_whom_the_umask_lets_in(train: TrainEngine, tmp_path: Path) -> None:
    """safetensors makes its files with mode 0600, so a colleague could not continue a run."""
    before = os.umask(0o027)
    try:
        save(tmp_path, train, 1)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"step-00000001": 0o750, "state.json": 0o640, "model-00000.safetensors": 0o640}


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(train: TrainEngine, tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, train, step)
    return tmp_path


def _truncate(folder: Path) -> None:
    path = folder / "model-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(folder: Path) -> None:
    path = folder / "model-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut_state(folder: Path) -> None:
    path = folder / STATE_NAME
    path.write_text(path.read_text()[:50])


def _change_state(folder: Path) -> None:
    """Still JSON, but another number: the KL coefficient of a run, say."""
    path = folder / STATE_NAME
    changed = path.read_text().replace('"note": 2', '"note": 3')
    assert changed != path.read_text()
    path.write_text(changed)


_OTHER = "has other content than was written"

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, f"model-00000.safetensors {_OTHER}"),
    "bit flipped": (_flip_a_bit, f"model-00000.safetensors {_OTHER}"),
    "file gone": (lambda folder: (folder / "model-00000.safetensors").unlink(), "model-00000.safetensors is missing"),
    "state cut": (_cut_state, f"{STATE_NAME} {_OTHER}"),
    "state flipped": (_change_state, f"{STATE_NAME} {_OTHER}"),
    "state gone": (lambda folder: (folder / STATE_NAME).unlink(), f"{STATE_NAME} is missing"),
    "state of something else": (
        lambda folder: (folder / STATE_NAME).write_text("[]"),
        f"{STATE_NAME} {_OTHER}",
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
    kind: str, two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, said = DAMAGES[kind]
    damage(two / "step-00000002")
    assert latest(two).step == 1
    lines = capsys.readouterr().err.splitlines()
    warned = [line for line in lines if line.startswith("warning: checkpoint")]
    assert warned == [f"warning: checkpoint {two / 'step-00000002'} is damaged ({said}) and is skipped"]


def test_only_what_belongs_to_a_checkpoint_is_read(two: Path, train: TrainEngine) -> None:
    """The folder was listed, which on another machine may still be missing files."""
    checkpoint = Checkpoints(two, keep=2).latest()
    assert checkpoint is not None
    (name,) = (file for file in checkpoint.files if file.endswith(".safetensors"))
    (checkpoint.folder / f"{name.rpartition('-')[0]}-00009.safetensors").write_bytes(b"left over")
    checkpoint.restore({name.rpartition("-")[0]: train})


def test_when_all_are_damaged_there_is_none(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in two.glob("step-*"):
        _flip_a_bit(folder)
    assert Checkpoints(two, keep=2).latest() is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_damaged_newer_one_does_not_crowd_out_what_is_written_next(two: Path, train: TrainEngine) -> None:
    """With keep=1 a damaged step 9 stood first in the order of age, so the sound step 3 was removed as soon as it was
    written, and nothing complete was left."""
    shutil.copytree(two / "step-00000002", two / "step-00000009")
    _flip_a_bit(two / "step-00000009")
    shutil.rmtree(two / "step-00000002")
    assert latest(two).step == 1
    Checkpoints(two, keep=1).save(3, {"model": train}, {})
    assert [folder.name for folder in two.iterdir()] == ["step-00000003"]


def test_a_half_written_one_is_not_seen_and_goes_with_the_next(two: Path, train: TrainEngine) -> None:
    """A rank that is killed while it writes leaves the temporary folder behind."""
    part = two / ".step-00000003.part"
    part.mkdir()
    (part / "model-00000.safetensors").write_bytes(b"half")
    assert latest(two).step == 2
    save(two, train, 4)
    assert not part.exists()


def test_a_checkpoint_of_another_model_is_said_to_be_one(two: Path) -> None:
    with pytest.raises(TrainingError, match="it is of another model"):
        latest(two).restore({"model": engines.engine(1, model=tiny_lm("gpt2"))})


# --- what stays ------------------------------------------------------------------------------------------------------


def test_the_last_k_and_the_best_stay(train: TrainEngine, tmp_path: Path) -> None:
    """Steps that were not evaluated have no score and are never the best."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    kept = []
    for step, score in [(1, None), (2, 0.9), (3, 0.5), (4, None), (5, 0.7), (6, 0.95), (7, 0.1)]:
        checkpoints.save(step, {"model": train}, {}, score=score)
        kept.append(sorted(int(folder.name[-8:]) for folder in tmp_path.iterdir()))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7]]


def test_a_score_that_is_no_number_is_not_the_best(train: TrainEngine, tmp_path: Path) -> None:
    """NaN compares as neither more nor less: taken for the best once, nothing would ever replace it."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in [(1, math.nan), (2, 0.2), (3, 0.1), (4, math.nan)]:
        checkpoints.save(step, {"model": train}, {}, score=score)
    assert sorted(folder.name[-1] for folder in tmp_path.iterdir()) == ["2", "4"]


# --- what cannot be written ------------------------------------------------------------------------------------------


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "model-00000.safetensors")


def _full_as_safetensors_says_it(*_: object, **__: object) -> None:
    from safetensors import SafetensorError

    raise SafetensorError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space" }')


def _read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system", "checkpoints")


@pytest.mark.parametrize(
    "where, fails, said",
    [
        ("rlhf.training.engine_state.write_tensors", _full, "the disk is full"),
        ("rlhf.training.engine_state.write_tensors", _full_as_safetensors_says_it, "the disk is full"),
        ("rlhf.training.checkpoint.write_json", _full, "the disk is full"),
        ("rlhf.training.checkpoint.os.replace", _full, "the disk is full"),
        ("pathlib.Path.mkdir", _read_only, "no permission to use checkpoints"),
        ("rlhf.training.engine_state.write_tensors", _read_only, "no permission to use checkpoints"),
    ],
    ids=["full", "full, by safetensors", "full at the state", "full at the end", "read-only folder", "read-only file"],
)
def test_what_cannot_be_written_costs_nothing_that_was_complete(
    where: str, fails: Callable[..., None], said: str, two: Path, train: TrainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        with pytest.raises(UserError) as caught:
            save(two, train, 3)
    lines, code = error_lines(caught.value)
    assert code == EXIT_USER
    assert len(lines) == 1 and "\n" not in lines[0]
    assert "step-00000003 could not be written" in lines[0] and said in lines[0]
    assert sorted(folder.name for folder in two.iterdir()) == ["step-00000001", "step-00000002"]
    assert latest(two).step == 2
    save(two, train, 3)
    assert latest(two).step == 3


def test_a_checkpoint_written_again_replaces_the_old_one_only_when_it_is_whole(
    two: Path, train: TrainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("rlhf.training.checkpoint.write_json", _full)
        with pytest.raises(UserError):
            save(two, train, 2)
    assert latest(two).state == {"note": 2}


def _one_rank_cannot_write(folder: str) -> tuple[list[str], int, list[str]]:
    train = engines.engine(1)
    save(Path(folder), train, 1)
    broken = (
        mock.patch("rlhf.training.engine_state.write_tensors", _full)
        if distributed.rank() == 1
        else contextlib.nullcontext()
    )
    try:
        with broken:
            save(Path(folder), train, 2)
    except UserError as error:
        return *error_lines(error), sorted(path.name for path in Path(folder).iterdir())
    return [], 0, []


def test_one_rank_that_cannot_write_stops_all_with_its_reason(
    run_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Rank 0 wrote its part well; without agreement it would have named the half of a checkpoint a whole one."""
    for lines, code, left in run_ranks(_one_rank_cannot_write, str(tmp_path)):
        assert code == EXIT_USER
        assert len(lines) == 1 and "the disk is full" in lines[0]
        assert left == ["step-00000001"]


def test_the_state_holds_what_was_given(two: Path, train: TrainEngine) -> None:
    """Floats come back as they were, NaN too: they are metrics of a step that a resumed run reports as its own."""
    state = {"before": 0.1 + 0.2, "tiny": 5e-324, "nan": math.nan}
    Checkpoints(two, keep=2).save(3, {"model": train}, state)
    found = latest(two)
    assert (found.step, found.folder.name) == (3, "step-00000003")
    assert found.state["before"] == 0.1 + 0.2 and found.state["tiny"] == 5e-324 and math.isnan(found.state["nan"])
    assert json.loads((found.folder / STATE_NAME).read_text())["score"] is None


def test_a_checkpoint_of_a_newer_format_is_refused_in_one_line(
    train: TrainEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round works: what an older version wrote, without a number, is read."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    monkeypatch.setattr("rlhf.training.checkpoint.FORMAT", 7)
    checkpoints.save(1, {"model": train}, {})
    monkeypatch.setattr("rlhf.training.checkpoint.FORMAT", 6)
    with pytest.raises(
        DataError, match=r"step-00000001 has checkpoint format 7, and this version reads formats up to 6"
    ):
        checkpoints.latest()


def _files_that_this_rank_reads(folder: str) -> tuple[int, list[str]]:
    train = engines.engine(2)
    save(Path(folder), train, 1)
    read: list[str] = []
    digest = module._digest

    def noted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    with mock.patch.object(module, "_digest", noted):
        return latest(Path(folder)).step, read


def test_the_ranks_share_the_reading_of_a_checkpoint(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    """Rank 0 hashed the files of all ranks, for minutes, while the others waited."""
    (step, first), (same, second) = run_ranks(_files_that_this_rank_reads, str(tmp_path))
    assert step == same == 1
    assert sorted(first + second) == ["model-00000.safetensors", "model-00001.safetensors"]
    assert len(first) == len(second) == 1
