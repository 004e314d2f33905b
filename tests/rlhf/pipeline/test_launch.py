"""Ranks: started with what they need, followed to their end, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import Terminated
from rlhf.pipeline import launch as launching
from rlhf.pipeline.launch import Placement, RankFailed, command, environment, launch, shown
from rlhf.pipeline.placement import placement_text
from tests.helpers.fakes import make_stage

pytestmark = pytest.mark.process


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(launching, "LAST_WORDS_SECONDS", 0.3)
    return make_stage(tmp_path / "packages", monkeypatch)


def run(name: str, folder: Path, *words: str, ranks: int = 2) -> list[str]:
    """Run the stage's ranks to their end; the lines that they wrote."""
    lines: list[str] = []
    launch(name, ["--output-dir", str(folder / "out"), *words], Placement(ranks=ranks), line=lines.append)
    return lines


def wait_for(path: Path, *, lines: int = 1, seconds: float = 30) -> list[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return path.read_text().splitlines()
        time.sleep(0.02)
    raise AssertionError(f"{path} has no {lines} lines after {seconds} s")


def alive(process: int) -> bool:
    """Whether a process runs; one that is dead but not yet collected by its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def gone(processes: list[int], *, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, processes))


def test_ranks_get_what_they_need(name: str, tmp_path: Path) -> None:
    """Each rank writes its environment; all settings of the run arrive, and our packages are found first."""
    out = tmp_path / "seen"
    out.mkdir()
    do = (
        "import data, json; seen = dict(os.environ) | {'data': data.__file__}; "
        f"(Path({str(out)!r}) / str(rank)).write_text(json.dumps(seen))"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise RuntimeError('somebody else')")
    here = os.getcwd()
    os.chdir(tmp_path)  # the folder of a user who has a data package of their own
    try:
        run(name, tmp_path, "--steps", "1", "--do", do)
    finally:
        os.chdir(here)
    first, second = (json.loads((out / rank).read_text()) for rank in ("0", "1"))
    for name in ("RANK", "LOCAL_RANK"):
        assert (first.pop(name), second.pop(name)) == ("0", "1")
    assert first == second
    assert first["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2"
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert int(first["MASTER_PORT"]) > 1023
    assert first["DS_ACCELERATOR"] == "cpu"
    assert first["CUDA_VISIBLE_DEVICES"] == ""
    assert Path(first["data"]).parent == launching.ROOT / "data"


def test_threads_are_shared_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.hardware.cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    placement = Placement(ranks=4)
    assert environment(placement, rank=0, port=1)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert environment(placement, rank=0, port=1)["OMP_NUM_THREADS"] == "2"  # the user's word counts
    assert placement_text(placement) == "4 CPU ranks, 2 threads each"  # it said 4


@pytest.mark.parametrize(("given", "threads"), [("3,2", 3), (" 3 ", 3), ("", 4), ("0", 4), ("many", 4)])
def test_threads_are_read_as_openmp_reads_them(given: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list, one number a level, is allowed; what is no number is ignored. Both ended a rank with a traceback."""
    monkeypatch.setattr("rlhf.hardware.cores", lambda: 16)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert environment(Placement(ranks=4), rank=0, port=1)["OMP_NUM_THREADS"] == str(threads)


def test_threads_do_not_wait_awake_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one busy process two threads that wait awake for each other took 3.4 times as long."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert int(environment(Placement(), rank=0, port=1)["GOMP_SPINCOUNT"]) < 300_000
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in environment(Placement(), rank=0, port=1)  # the user's word counts


def test_the_output_of_ranks_is_told_apart(name: str, tmp_path: Path) -> None:
    lines = run(name, tmp_path, "--steps", "1", "--do", "print('10%\\rhalf\\rwhole'); print('é', file=sys.stderr)")
    assert {"whole", "é", "[rank 1] whole", "[rank 1] é"} <= set(lines)


def test_a_rank_that_dies_ends_the_others_and_is_the_cause(name: str, tmp_path: Path) -> None:
    """Rank 0 waits in a collective for ever; rank 1 said why before it died."""
    do = "print('chatter'); time.sleep(600) if rank == 0 else [][0]"
    began = time.monotonic()
    with pytest.raises(RankFailed) as caught:
        run(name, tmp_path, "--do", do)
    assert caught.value.problems == ["rank 1: IndexError: list index out of range"]
    assert caught.value.exit_code == 1
    assert time.monotonic() - began < 60


def test_a_rank_that_is_killed_is_named(name: str, tmp_path: Path) -> None:
    """The kernel kills a rank for memory: the others then fail, louder, for want of it."""
    do = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else (time.sleep(0.15), 1 / 0)"
    with pytest.raises(RankFailed) as caught:
        run(name, tmp_path, "--do", do)
    assert caught.value.problems == ["rank 1 was killed by SIGKILL; the machine may be out of memory"]


def test_problems_of_the_user_keep_their_exit_code(name: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailed) as caught:
        run(name, tmp_path, "--do", "raise DataError('row 1 is bad', 'row 2 is bad')", ranks=1)
    assert (caught.value.problems, caught.value.exit_code) == (["row 1 is bad", "row 2 is bad"], 2)


def test_a_rank_without_a_word_is_still_a_failure(name: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="ended with exit code 7 and gave no reason"):
        run(name, tmp_path, "--do", "os._exit(7)", ranks=1)


def test_children_of_ranks_end_with_them(name: str, tmp_path: Path) -> None:
    """Data workers that outlive their rank would hold its memory, and its output open."""
    seen = tmp_path / "child"
    do = (
        "import subprocess; child = subprocess.Popen(['sleep', '600']); "
        f"Path({str(seen)!r}).write_text(str(child.pid)); 1 / 0"
    )
    with pytest.raises(RankFailed, match="division by zero"):
        run(name, tmp_path, "--do", do, ranks=1)
    assert gone([int(seen.read_text())])


_WATCHER = """
import signal, sys
from rlhf.command import show_error, terminable
from rlhf.errors import Terminated
from rlhf.pipeline.launch import Placement, launch

signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests that run in the background would ignore
try:
    with terminable():
        launch(sys.argv[1], sys.argv[2:], Placement(ranks=2), line=print)
except (KeyboardInterrupt, Terminated) as error:
    raise SystemExit(show_error(error))
"""


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_no_rank_outlives_the_process_that_started_it(
    name: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """SIGKILL gives it no time to tell its ranks; SIGTERM and Ctrl-C are passed on, so that ranks can clean up."""
    started, ended = tmp_path / "started", tmp_path / "ended"
    do = (
        f"open({str(started)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "try:\n    time.sleep(600)\n"
        f"except BaseException as e:\n    open({str(ended)!r}, 'a').write(type(e).__name__ + '\\n'); raise"
    )
    words = [sys.executable, "-c", _WATCHER, name, "--output-dir", str(tmp_path / "out"), "--do", do]
    watcher = subprocess.Popen(
        words, cwd=launching.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        ranks = [int(line) for line in wait_for(started, lines=2)]
        watcher.send_signal(number)
        _, errors = watcher.communicate(timeout=30)
    finally:
        watcher.kill()
    assert watcher.returncode == code
    assert gone(ranks)
    if number != signal.SIGKILL:
        kind = "KeyboardInterrupt" if number == signal.SIGINT else "Terminated"
        assert wait_for(ended, lines=2) == [kind, kind]
        assert errors.count("error:") == 1


def test_a_rank_behind_a_launcher_watches_the_process_that_wants_it(name: str, tmp_path: Path) -> None:
    """Over several nodes the DeepSpeed launcher stands between, which outlives a SIGKILL of train.py."""
    started = tmp_path / "started"
    owner = subprocess.Popen(["sleep", "600"])
    do = f"Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(600)"
    rank = subprocess.Popen(
        [sys.executable, "-m", name, "--output-dir", str(tmp_path / "out"), "--do", do],
        env={**os.environ, "RLHF_OWNER": str(owner.pid)},
    )
    try:
        wait_for(started)
        assert rank.poll() is None
        owner.kill()
        owner.wait()
        assert rank.wait(timeout=30) == -signal.SIGKILL
    finally:
        owner.kill()
        rank.kill()


def test_a_rank_that_ignores_the_signal_is_killed_after_the_grace_that_was_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_GRACE_SECONDS", "0.5")
    started = tmp_path / "started"
    do = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )

    def stop() -> None:
        wait_for(started)
        raise Terminated

    with pytest.raises(Terminated):
        launch(
            name,
            ["--output-dir", str(tmp_path / "out"), "--do", do],
            Placement(),
            line=lambda text: None,
            started=stop,
        )
    assert gone([int(started.read_text())])


def _rank_that_counts(folder: Path, *, seconds: float) -> str:
    """Code of a rank that notes signals, as one does in a step, and ends by itself after some time."""
    return (
        "got = []\n"
        "for number in (signal.SIGTERM, signal.SIGINT):\n"
        "    signal.signal(number, lambda number, frame, got=got: got.append(number))\n"
        f"(Path({str(folder)!r}) / f'{{rank}}.started').write_text('')\n"
        f"end = time.monotonic() + {seconds}\n"
        "while time.monotonic() < end or not got: time.sleep(0.05)\n"
        f"(Path({str(folder)!r}) / f'{{rank}}.got').write_text(str(len(got)))\n"
        "os._exit(143)"
    )


def test_a_signal_reaches_each_rank_once_and_ranks_may_take_their_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks had 120 s, in which a large model writes no checkpoint. A signal to a rank's group was passed on once more
    by a launcher in it, so that a rank got two, and ended without a checkpoint."""
    monkeypatch.delenv("RLHF_GRACE_SECONDS", raising=False)

    def stop() -> None:
        for rank in range(2):
            while not (tmp_path / f"{rank}.started").exists():
                time.sleep(0.02)
        raise Terminated

    words = ["--output-dir", str(tmp_path / "out"), "--do", _rank_that_counts(tmp_path, seconds=3.0)]
    with pytest.raises(Terminated):
        launch(name, words, Placement(ranks=2), line=lambda text: None, started=stop)
    assert [(tmp_path / f"{rank}.got").read_text() for rank in range(2)] == ["1", "1"]


def test_when_ranks_end_as_a_signal_asks_the_run_does_too(name: str, tmp_path: Path) -> None:
    """The signal may have come to a rank of another node. It was reported as a failure that gave no reason."""
    with pytest.raises(Terminated):
        run(name, tmp_path, "--do", "os._exit(143)")
    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "again", "--do", "os._exit(130)")


def test_commands_as_one_would_type_them() -> None:
    assert shown(command("step1_sft", ["--config", "a b.yaml"])) == "python -m step1_sft --config 'a b.yaml'"


def test_a_node_s_ranks_get_their_numbers_over_all_nodes() -> None:
    second = Placement(ranks=4, nodes=2, node_rank=1, master_addr="10.0.0.1", master_port=29501)
    found = environment(second, rank=3, port=second.master_port)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [found[name] for name in names] == ["7", "3", "8", "4", "10.0.0.1", "29501"]
