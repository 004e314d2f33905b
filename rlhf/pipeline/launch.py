"""Starts a stage's ranks, follows their output, and makes sure that none outlives the run.

On one node the ranks are our own children. The kernel kills each of them when we die, and each also watches our process
id. On several nodes the DeepSpeed launcher starts them. The first rank that fails ends the others.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf import hardware
from rlhf.errors import EXIT_FAILURE, EXIT_USER, RLHFError, Terminated

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 120.0  # for ranks that were asked to end, to finish a step and write a checkpoint
LAST_WORDS_SECONDS = 2.0  # for the output of the other ranks after one has failed
_PR_SET_PDEATHSIG = 1
_ERROR = re.compile(r"^(?:[\w.-]+: )?error: (.*)$")  # a remote launcher puts the host's name before it


class RankFailed(RLHFError):
    """A rank ended with an error; the text is its last error lines. `exit_code` is 2 if the user can fix it."""

    def __init__(self, problems: Sequence[str], exit_code: int) -> None:
        super().__init__("\n".join(problems))
        self.problems, self.exit_code = list(problems), exit_code


@dataclass(frozen=True)
class Placement:
    """Where ranks run: `ranks` on each of `nodes`. With `node_rank` each node starts its own, else node 0 all."""

    ranks: int = 1
    gpus: bool = False
    nodes: int = 1
    node_rank: int | None = None
    hostfile: Path | None = None
    master_addr: str = ""
    master_port: int = 29500

    @property
    def world_size(self) -> int:
        return self.ranks * self.nodes

    @property
    def first(self) -> bool:
        """Whether this node writes the run's folder."""
        return not self.node_rank


def command(package: str, arguments: Sequence[str], placement: Placement) -> list[str]:
    """The command that is started: once per rank on one node, once per node over several."""
    if placement.nodes == 1:
        return [sys.executable, "-m", package, *arguments]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_nodes", str(placement.nodes)]
    launcher += ["--num_gpus", str(placement.ranks), "--master_port", str(placement.master_port)]
    if placement.hostfile:
        launcher += ["--hostfile", str(placement.hostfile)]
    if placement.master_addr:
        launcher += ["--master_addr", placement.master_addr]
    if placement.node_rank is not None:
        launcher += ["--no_ssh", "--node_rank", str(placement.node_rank)]
    return [*launcher, "--no_local_rank", "--quiet", "--module", package, "--events", *arguments]


def shown(words: Sequence[str]) -> str:
    """A command as a user would type it."""
    return shlex.join(["python" if words[0] == sys.executable else words[0], *words[1:]])


def launch(
    package: str,
    arguments: Sequence[str],
    placement: Placement,
    *,
    line: Callable[[str], None],
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run a stage to its end on this node's ranks; `line` gets each line of output, tagged for ranks other than 0.

    `started` is called when all ranks run: a display may start threads only after all processes are forked.
    Raises RankFailed when a rank fails. Ctrl-C and SIGTERM are passed on to the ranks, which get `GRACE_SECONDS`.
    """
    words = command(package, arguments, placement)
    local = placement.ranks if placement.nodes == 1 else 1
    port = hardware.free_port() if placement.nodes == 1 else placement.master_port
    ranks: list[_Rank] = []
    try:
        for number in range(local):
            variables = environment(placement, rank=number if placement.nodes == 1 else None, port=port)
            ranks.append(_Rank(number, _start(words, variables)))
        started()
        _follow(ranks, line)
    except (KeyboardInterrupt, Terminated) as error:
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        _end(ranks, number, GRACE_SECONDS, line)
        raise
    finally:
        _end(ranks, signal.SIGKILL, 5.0, line)
    failed = [rank for rank in ranks if rank.process.returncode]
    if failed:
        raise _cause(failed, tagged=local > 1)


def environment(placement: Placement, *, rank: int | None, port: int) -> dict[str, str]:
    """The environment of a rank, or of a launcher if `rank` is None. Our packages come first on the path; libraries get
    the number of threads and are told to be quiet."""
    variables = dict(os.environ)
    path = [str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    variables |= {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",  # a data/ in the user's working folder must not hide ours
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "RLHF_EVENTS": "1",
        "RLHF_OWNER": str(os.getpid()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    variables.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // placement.ranks)))
    if placement.gpus:
        # inference copy and cache come and go in each iteration, in other sizes
        variables.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    else:
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if rank is not None:
        variables |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(placement.ranks),
            "LOCAL_WORLD_SIZE": str(placement.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return variables


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass
class _Rank:
    """A child process, and its last errors."""

    number: int
    process: subprocess.Popen[bytes]
    errors: list[str] = field(default_factory=list)  # the last "error:" lines in a row
    ended: float | None = None
    killed_by_us: bool = False
    _tail: bytes = b""
    _in_errors: bool = False

    def poll(self) -> bool:
        """Whether it has ended; notes when."""
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.monotonic()
        return self.ended is not None

    def read(self, line: Callable[[str], None]) -> bool:
        """Pass on what it wrote; False at the end of its output."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._tail = (self._tail + data).split(b"\n")
        if not data and self._tail:
            lines, self._tail = [*lines, self._tail], b""
        for raw in lines:
            # a bar that redraws itself: keep its last state only
            text = raw.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
            self._note(text)
            line(text if self.number == 0 or text.startswith("error: ") else f"[rank {self.number}] {text}")
        return bool(data)

    def _note(self, text: str) -> None:
        match = _ERROR.match(text)
        if match:
            self.errors = [*self.errors, match[1]] if self._in_errors else [match[1]]
        self._in_errors = bool(match)


# Asks the kernel to kill this process when its owner dies, then becomes the program. It is a process of its own because
# a fork of ours (`preexec_fn`) would need all of our memory a second time.
_DIE_WITH_OWNER = f"""
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, 9)
if os.getppid() != int(sys.argv[1]):  # it died before the line above
    os._exit(137)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _start(words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _DIE_WITH_OWNER, str(os.getpid()), *words],
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that Ctrl-C reaches a rank only through us, and its children can be found
    )


def _follow(ranks: Sequence[_Rank], line: Callable[[str], None]) -> None:
    """Pass output on until every rank has ended; some time after the first failure the others are killed."""
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            assert rank.process.stdout is not None
            selector.register(rank.process.stdout, selectors.EVENT_READ, rank)
        while True:
            for key, _ in selector.select(timeout=0.1):
                if not key.data.read(line):
                    selector.unregister(key.fileobj)
            running = [rank for rank in ranks if not rank.poll()]
            if not running and (not selector.get_map() or _quiet_for(ranks, 1.0)):
                return  # a grandchild may hold the output open for ever
            failures = [rank.ended for rank in ranks if rank.ended and rank.process.returncode]
            if running and failures and time.monotonic() - min(failures) > LAST_WORDS_SECONDS:
                for rank in running:
                    rank.killed_by_us = True
                    _signal(rank, signal.SIGKILL)


def _quiet_for(ranks: Sequence[_Rank], seconds: float) -> bool:
    return all(rank.ended is not None and time.monotonic() - rank.ended > seconds for rank in ranks)


def _end(ranks: Sequence[_Rank], number: signal.Signals, seconds: float, line: Callable[[str], None]) -> None:
    """Signal every rank's group, children of ranks included, and wait; what is left after `seconds` is killed."""
    for rank in ranks:
        _signal(rank, number)
    deadline = time.monotonic() + seconds
    try:
        with selectors.DefaultSelector() as selector:
            for rank in ranks:
                if rank.process.stdout is not None and not rank.process.stdout.closed:
                    selector.register(rank.process.stdout, selectors.EVENT_READ, rank)
            while time.monotonic() < deadline and not all(rank.poll() for rank in ranks):
                for key, _ in selector.select(timeout=0.05):
                    if not key.data.read(line):
                        selector.unregister(key.fileobj)
    finally:  # also on a second Ctrl-C
        for rank in ranks:
            _signal(rank, signal.SIGKILL)
            rank.process.wait()
            rank.poll()
            if rank.process.stdout is not None:
                rank.process.stdout.close()


def _signal(rank: _Rank, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(rank.process.pid, number)


def _cause(failed: Sequence[_Rank], *, tagged: bool) -> RankFailed:
    """The first failure. A rank that was killed from outside comes before ranks that failed because it was missing."""
    own = [rank for rank in failed if not rank.killed_by_us] or list(failed)
    first = min(own, key=lambda rank: (rank.process.returncode > 0, rank.ended or 0.0))
    code = first.process.returncode
    name = f"rank {first.number}" if tagged else "the process"
    if code < 0:
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        return RankFailed([f"{name} was killed by {signal.Signals(-code).name}{hint}"], EXIT_FAILURE)
    problems = first.errors or [f"{name} ended with exit code {code} and gave no reason"]
    return RankFailed(problems, EXIT_USER if code == EXIT_USER else EXIT_FAILURE)
