"""Files are whole or absent; a folder belongs to one run, and to one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from rlhf import files
from rlhf.config import read_yaml
from rlhf.errors import ConfigError, error_lines
from rlhf.files import (
    LOCK_NAME,
    claim_folder,
    empty_folder,
    file_problems,
    folder_problems,
    lock,
    lock_folder,
    new_folder,
    release_folder,
    write_json,
    write_text,
    write_yaml,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    lines, code = error_lines(caught.value)
    assert lines == [f"the disk is full while writing {path}; free some space and run the same command again"]
    assert code == 2


def test_a_folder_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fail() -> None:
        with new_folder(target) as part:
            (part / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as part:
        (part / "weights").write_text("whole")
    with new_folder(target) as part:
        (part / "other").write_text("whole")
    assert [p.name for p in target.iterdir()] == ["other"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_what_is_written_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    """Weights were readable by their owner alone, because safetensors makes its files with tempfile; a text was
    readable by everybody, also where the umask forbids it."""
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a" / "config.yaml", "x")
        with new_folder(tmp_path / "model") as part:
            os.close(tempfile.mkstemp(dir=part)[0])
            inner = Path(tempfile.mkdtemp(dir=part))
            os.close(tempfile.mkstemp(dir=inner)[0])
            (part / "link").symlink_to(tmp_path / "nowhere")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        wanted = 0o777 if path.is_dir() else 0o666
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == wanted & ~umask, path


def test_a_name_that_is_not_text_is_kept_in_json(tmp_path: Path) -> None:
    """A file may be called b"caf\\xe9"; Python holds that as a lone surrogate, which UTF-8 cannot hold."""
    name = os.fsdecode(b"caf\xe9.jsonl")
    write_json(tmp_path / "a.json", {"é": name})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"é": name}
    write_yaml(tmp_path / "a.yaml", {"é": name})
    assert read_yaml(tmp_path / "a.yaml") == {"é": name}


def test_a_foreign_folder_is_neither_written_nor_emptied(tmp_path: Path) -> None:
    """`--output-dir . --overwrite` in one's project must not touch it."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty and was not written by a run"):
        claim_folder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(AssertionError):
        empty_folder(tmp_path)
    assert folder_problems(tmp_path / "thesis.tex" / "output")[0].endswith("choose another output folder")
    assert "is a file" in folder_problems(tmp_path / "thesis.tex")[0]


def test_a_folder_whose_name_is_not_text_is_refused(tmp_path: Path) -> None:
    """The libraries that write tokenizers and weights cannot open it, which came out when a stage had trained."""
    (found,) = folder_problems(tmp_path / os.fsdecode(b"caf\xe9"))
    assert "is not UTF-8 text" in found


def test_a_file_that_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert file_problems(tmp_path / "new" / "a.json", flag="--output") == []
    assert file_problems(tmp_path, flag="--output") == [f"--output {tmp_path} is a folder; name a file"]
    assert "file is not a folder that you may write in" in file_problems(tmp_path / "file" / "a", flag="--output")[0]


def test_a_claimed_folder_is_emptied_but_for_its_lock(tmp_path: Path) -> None:
    folder, outside = tmp_path / "output", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    claim_folder(folder)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("")
    (folder / "link").symlink_to(outside)
    empty_folder(folder)
    assert [p.name for p in folder.iterdir()] == [LOCK_NAME]
    assert (outside / "kept").exists()
    claim_folder(folder)  # again: it is ours


@contextlib.contextmanager
def killed() -> Iterator[None]:
    """Writing ends before the rename, and nothing is tidied up."""
    tidying = patch("rlhf.files.shutil.rmtree"), patch("pathlib.Path.unlink")
    with pytest.raises(KeyboardInterrupt), tidying[0], tidying[1], patch("os.fsync", side_effect=KeyboardInterrupt):
        yield


def test_what_a_killed_run_was_writing_goes_when_the_next_one_has_the_lock(tmp_path: Path) -> None:
    """A run that was killed while it exported its model left `.model.HOST.PID.part`, as large as the model, for ever:
    the next one has another process number. What another lock guards may be in use, and stays."""
    run, stage, outside = tmp_path / "output", tmp_path / "output" / "step1_sft", tmp_path / "outside"
    outside.mkdir()
    for folder in (run, stage):
        claim_folder(folder)
    with killed(), new_folder(stage / "model") as left:
        (left / "weights").write_text("")
    (stage / "checkpoints").mkdir()
    with killed():
        write_text(stage / "checkpoints" / "a.json", "{}")
    (run / ".link.part").symlink_to(outside)
    kept = [run / ".env", stage / "metrics.jsonl", run / "part"]
    for path in kept:
        path.write_text("")
    assert len(list(run.rglob("*.part"))) == 3
    lock_folder(run)
    assert len(list(run.rglob("*.part"))) == 2
    lock_folder(stage)
    assert list(run.rglob("*.part")) == []
    assert all(path.exists() for path in [*kept, outside, stage / "checkpoints"])
    for folder in (run, stage):
        release_folder(folder)


@pytest.mark.process
def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    claim_folder(folder)
    program = (
        "import sys, pathlib\n"
        "from rlhf.files import lock_folder\n"
        "lock_folder(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on "):
            lock_folder(folder)
    finally:
        holder.kill()
        holder.communicate()
    lock_folder(folder, wait=5)
    assert (folder / LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_worker_that_outlives_its_parent_holds_no_lock(tmp_path: Path) -> None:
    """A killed run's tokenising workers lived on for a while; had they inherited its locks, the next run would wait."""
    program = (
        "import os, sys, time\n"
        "from rlhf.files import lock\n"
        "file = open(sys.argv[1], 'a')\n"
        "assert lock(file)\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(600)\n"
    )
    path = tmp_path / "lock"
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    try:
        with path.open("a") as file:
            assert not lock(file)
            assert not lock(file, wait=0.1)
            parent.kill()
            parent.wait()
            os.kill(worker, 0)  # it lives
            assert lock(file)
    finally:
        parent.kill()
        os.kill(worker, signal.SIGKILL)
        parent.communicate()


def test_a_folder_that_another_machine_has_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checkpoint failed with "No such file or directory" on every machine but the first, which had made its
    folder: the network file system remembered that it was not there, and refused to make it because it is."""
    made, real = tmp_path / "checkpoints" / "new", Path.is_dir
    made.mkdir(parents=True)
    answers = iter([False, False])
    monkeypatch.setattr(Path, "is_dir", lambda path: next(answers, True) and real(path))
    files.join_folder(made)
    assert next(answers, None) is None

    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    with pytest.raises(FileExistsError):
        files.join_folder(made, seconds=0)
