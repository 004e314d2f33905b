"""The cache: built by one process while others wait, whole or not there, recovered after a kill."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  here, so that the forked ranks need not each import it
import pytest

from data import cache, encode, stage_data, tokens
from data.cache import build_once

fork = multiprocessing.get_context("fork")


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.01)


def test_a_folder_is_built_once_and_whole(tmp_path: Path) -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("1")
        assert not (tmp_path / "rows-k").exists()

    for _ in range(2):
        assert (build_once(tmp_path, "rows", "k", build, doing="testing") / "a").read_text() == "1"
    assert len(calls) == 1


def test_without_locks_the_first_whole_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks the raw OSError was shown. Now each process builds, and disturbs no other."""

    def no_locks(*args: Any, **kwargs: Any) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(cache, "lock", no_locks)
    unfinished = tmp_path / ".rows-a.other.1.part"
    unfinished.mkdir()

    def slow(folder: Path) -> None:
        (folder / "mine").write_text("late")
        (tmp_path / "rows-a").mkdir()  # another process is ready first
        (tmp_path / "rows-a" / "theirs").write_text("first")

    found = cache.build_once(tmp_path, "rows", "a", slow, doing="testing")
    assert [file.name for file in found.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.glob(".*.part")] == [unfinished.name]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "half"))

    with pytest.raises(OSError, match="No space left"):
        build_once(tmp_path, "rows", "k", build, doing="testing")
    assert [p.name for p in tmp_path.iterdir()] == ["rows-k.lock"]


def _rank(settings: Any, template: Any, out: Path, stall_in: Path | None) -> None:
    """What a rank does; with `stall_in` it hangs in the middle of tokenising, its first batches written."""
    if stall_in:
        calls = iter(range(100))
        original = encode.Encoder.__call__

        def stalling(self: Any, batch: Any) -> Any:
            if next(calls) == 2:
                stall_in.touch()
                time.sleep(600)
            return original(self, batch)

        encode.Encoder.__call__ = stalling  # type: ignore[method-assign]
    data = stage_data.preferences(settings, template)
    out.write_text(f"{len(data.train)} {data.report['train']['fingerprint']}")


@pytest.mark.process
def test_a_rank_is_killed_while_it_builds_and_the_next_start_recovers(
    tmp_path: Path, write, settings, pairs, template, monkeypatch, capfd
) -> None:
    """Half-built caches used to be read by the next run; now who waits takes over, and a later start agrees."""
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 10)
    mine = settings(write("a.jsonl", pairs(200)))
    builder = fork.Process(target=_rank, args=(mine, template, tmp_path / "first", tmp_path / "stalled"))
    builder.start()
    wait_for(tmp_path / "stalled")
    (half,) = (tmp_path / "cache").glob(".preferences-*.part")
    assert any(half.iterdir())
    waiter = fork.Process(target=_rank, args=(mine, template, tmp_path / "second", None))
    waiter.start()
    deadline, said = time.monotonic() + 60, ""
    while "waiting for another process that is tokenising" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        said += capfd.readouterr().out
    assert not (tmp_path / "second").exists()  # it waits, it does not read what is half-built
    assert builder.pid
    os.kill(builder.pid, signal.SIGKILL)
    for process in (builder, waiter):
        process.join(60)
    assert (builder.exitcode, waiter.exitcode) == (-signal.SIGKILL, 0)
    assert not (tmp_path / "first").exists()
    assert not list((tmp_path / "cache").glob(".*.part"))
    _rank(mine, template, tmp_path / "third", None)
    assert (tmp_path / "second").read_text() == (tmp_path / "third").read_text()


@pytest.mark.process
def test_two_ranks_at_once_build_once_and_agree(tmp_path: Path, write, settings, pairs, template) -> None:
    mine = settings(write("a.jsonl", pairs(200)))
    ranks = [fork.Process(target=_rank, args=(mine, template, tmp_path / f"out{r}", None)) for r in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert len({(tmp_path / f"out{r}").read_text() for r in range(3)}) == 1


@pytest.mark.process
def test_several_processes_tokenise_to_the_same_rows(write, settings, pairs, template, tmp_path: Path) -> None:
    """Demonstrations, because with the longest of the kinds' names the shards' fingerprints were once too long."""
    path = write("a.jsonl", pairs(4000, "a question of some length"))
    whole = {"data_split": "1,0,0", "max_eval_samples": 10}
    one = stage_data.demonstrations(settings(path, **whole), template)
    other = settings(path, num_proc=2, **whole).model_copy(update={"data_cache_dir": tmp_path / "other"})
    two = stage_data.demonstrations(other, template)
    assert len(two.train) > 3500
    assert [two.train[i] for i in range(0, len(two.train), 97)] == [one.train[i] for i in range(0, len(one.train), 97)]
    assert two.report["train"] == one.report["train"]


def _stalling_rank(settings: Any, template: Any, pids: Path) -> None:
    def stall(self: Any, batch: Any) -> Any:
        (pids / str(os.getpid())).touch()
        time.sleep(600)

    encode.Encoder.__call__ = stall  # type: ignore[method-assign]
    stage_data.demonstrations(settings, template)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_no_worker_outlives_a_killed_rank(write, settings, pairs, template, tmp_path: Path) -> None:
    """The pool's processes used to wait for ever for a parent that was gone, each with the memory of a rank."""
    path, pids = write("a.jsonl", pairs(1500)), tmp_path / "pids"
    pids.mkdir()
    mine = settings(path, num_proc=2, data_split="1,0,0")
    rank = fork.Process(target=_stalling_rank, args=(mine, template, pids))
    rank.start()
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert rank.pid
    children = Path(f"/proc/{rank.pid}/task/{rank.pid}/children").read_text().split()
    assert {p.name for p in pids.iterdir()} < set(children)  # the workers, and the server of their queue
    os.kill(rank.pid, signal.SIGKILL)
    rank.join(60)
    while any(_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    assert cache.default_folder() == tmp_path / "data"
    monkeypatch.delenv("RLHF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "rlhf" / "data"
