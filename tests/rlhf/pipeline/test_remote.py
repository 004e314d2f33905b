"""Ranks on other machines: what they get, how they end, and what is said when one is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.errors import Terminated
from rlhf.pipeline import launch as launching
from rlhf.pipeline import remote
from rlhf.pipeline.launch import launch
from rlhf.pipeline.placed import Placement, RankFailed
from tests.helpers import hosts as helper
from tests.helpers.fakes import make_stage

hosts = helper.hosts
TWO = Placement(ranks=2, nodes=2, hosts=("node-a", "node-b"), master_addr="10.0.0.1", master_port=29500)


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: Callable[..., Path]) -> str:
    monkeypatch.setattr(launching, "LAST_WORDS_SECONDS", 0.3)
    hosts("node-a", "node-b")
    return make_stage(tmp_path / "packages", monkeypatch)


def run(name: str, folder: Path, do: str, **more: Callable[[], None]) -> list[str]:
    """Run the stage's four ranks to their end; the lines that they wrote."""
    lines: list[str] = []
    launch(name, ["--output-dir", str(folder / "out"), "--do", do], TWO, line=lines.append, **more)
    return lines


def wait_for(folder: Path, pattern: str, *, files: int) -> None:
    end = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < files:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model behind a licence could not be loaded on the other nodes: HF_TOKEN stayed here."""
    for variable, value in {
        "HF_TOKEN": "secret",
        "HF_HOME": "/h",
        "HF_HUB_OFFLINE": "1",
        "RLHF_TIMEOUT_SECONDS": "7",
        "OMP_NUM_THREADS": "3",
        "PYTORCH_CUDA_ALLOC_CONF": "a:b",
        "NCCL_DEBUG": "INFO",
        "RLHF_CACHE": "/c d",
        "CUDA_VISIBLE_DEVICES": "0",
        "RLHF_OWNER": "1",
        "RLHF_EVENTS": "1",
        "HOSTNAME": "here",
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_text("# of all runs\nMINE=a=b\nHF_HOME=/there\n")
    found = remote.environment()
    travelling = ("HF_TOKEN", "HF_HUB_OFFLINE", "RLHF_TIMEOUT_SECONDS", "OMP_NUM_THREADS", "NCCL_DEBUG", "RLHF_CACHE")
    assert all(found[key] == os.environ[key] for key in (*travelling, "PYTORCH_CUDA_ALLOC_CONF"))
    assert (found["MINE"], found["HF_HOME"]) == ("a=b", "/there")
    assert not {"CUDA_VISIBLE_DEVICES", "RLHF_OWNER", "RLHF_EVENTS", "HOSTNAME", "PATH"} & set(found)
    assert "secret" not in " ".join(remote.command("node-b", "run"))  # other users can list commands


def test_this_machine_needs_no_ssh() -> None:
    assert remote.command(socket.gethostname(), "ask")[0] == "env"
    assert remote.command("elsewhere", "ask")[0] == "ssh"


@pytest.mark.process
def test_ranks_of_two_hosts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get their numbers and the variables of this machine, and stand in its folder. A token is in no command."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret; $(false)")
    monkeypatch.chdir(tmp_path)
    do = (
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'HF_TOKEN', 'PWD')\n"
        "print('I am', os.environ['RANK'], [os.environ.get(n) for n in names[1:6]], os.getcwd()) if step == 1 else None"
    )
    lines = run(name, tmp_path, do)
    for rank in range(4):
        tag = f"[rank {rank}] " if rank else ""
        rest = [str(rank % 2), "4", "2", "10.0.0.1", "hf_secret; $(false)"]
        assert f"{tag}I am {rank} {rest} {tmp_path}" in lines
    assert "hf_secret" not in (tmp_path / "bin" / "commands.txt").read_text()


@pytest.mark.process
def test_the_failure_of_a_rank_elsewhere(name: str, tmp_path: Path) -> None:
    """It ends all others, and host, rank and exit code are kept."""
    here = socket.gethostname()
    with pytest.raises(RankFailed) as caught:
        run(name, tmp_path, "time.sleep(600) if rank != 3 else (_ for _ in ()).throw(DataError('row 1 is bad'))")
    assert (caught.value.problems, caught.value.exit_code) == ([f"{here}: rank 3: row 1 is bad"], 2)
    with pytest.raises(RankFailed) as caught:
        run(name, tmp_path / "b", "os.kill(os.getpid(), 9) if rank == 2 else time.sleep(600)")
    assert caught.value.problems == [f"{here}: rank 2 was killed by SIGKILL; the machine may be out of memory"]


_COUNT = (
    "got = []\n"
    "signal.signal(signal.SIGTERM, lambda number, frame, got=got: got.append(number))\n"
    "Path({folder!r}, f'{{rank}}.started').write_text(str(os.getpid()))\n"
    "end = time.monotonic() + 2\n"
    "while time.monotonic() < end or not got: time.sleep(0.05)\n"
    "Path({folder!r}, f'{{rank}}.got').write_text(str(len(got)))\n"
    "os._exit(143)"
)


@pytest.mark.process
def test_a_signal_reaches_the_ranks_of_all_hosts_once(name: str, tmp_path: Path) -> None:
    """With DeepSpeed's launcher they got two within 10 ms, and ended without a checkpoint; and when that launcher had
    ended, which it did at once, ranks were killed."""

    def stop() -> None:
        wait_for(tmp_path, "*.started", files=4)
        raise Terminated

    with pytest.raises(Terminated):
        run(name, tmp_path, _COUNT.format(folder=str(tmp_path)), started=stop)
    assert [(tmp_path / f"{rank}.got").read_text() for rank in range(4)] == ["1"] * 4


_WATCHER = """
import sys
from rlhf.pipeline.launch import launch
from tests.rlhf.pipeline.test_remote import TWO

launch(sys.argv[1], sys.argv[2:], TWO, line=print)
"""


@pytest.mark.process
def test_ranks_of_all_hosts_end_when_train_py_is_killed(name: str, tmp_path: Path) -> None:
    do = f"Path({str(tmp_path)!r}, f'{{rank}}.started').write_text(str(os.getpid())); time.sleep(600)"
    words = [sys.executable, "-c", _WATCHER, name, "--output-dir", str(tmp_path / "out"), "--do", do]
    watcher = subprocess.Popen(words, cwd=launching.ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(tmp_path, "*.started", files=4)
        ranks = [int(path.read_text() or 0) for path in tmp_path.glob("*.started")]
    finally:
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.process
def test_a_host_that_is_lost_is_named(name: str, tmp_path: Path, hosts: Callable[..., Path]) -> None:
    hosts("node-a", node_b=("fails", 255, "Timeout, server node-b not responding."))
    with pytest.raises(RankFailed) as caught:
        run(name, tmp_path, "time.sleep(600)")
    assert caught.value.problems == ["node-b: the connection by ssh was lost (Timeout, server node-b not responding.)"]


@pytest.mark.process
def test_a_host_without_the_folder_of_the_run_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.pipeline.remote.os.getcwd", lambda: "/not/there")
    with pytest.raises(RankFailed, match=r"cannot enter /not/there \(No such file or directory\): all nodes must see"):
        run(name, tmp_path, "pass")
