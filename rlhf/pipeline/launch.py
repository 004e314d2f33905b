"""Starts a stage's ranks, follows their output, and makes sure that none outlives the run.

The ranks of this node are our own children. The kernel kills each of them when we die, and each also watches our
process id. On other nodes `rlhf.pipeline.node` does the same for us, started by ssh. The first rank that fails ends the
others. Imports no torch.
"""

from __future__ import annotations

import contextlib
import math
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
from typing import Any

from rlhf import hardware
from rlhf.config import seconds_of
from rlhf.errors import EXIT_FAILURE, EXIT_INTERRUPT, EXIT_TERMINATED, EXIT_USER, Terminated
from rlhf.pipeline import remote
from rlhf.pipeline.placed import ROOT, Placement, RankFailed

# Rounds in which a thread waits awake for the others before it sleeps (GNU's OpenMP). At its default of 300,000 two
# threads beside one busy process take 3.4 times as long; at this 2.0 times, and a fifth longer where nothing else runs
# (docs/notes.md).
SPINS = "10000"
LAST_WORDS_SECONDS = 2.0  # for the output of the other ranks after one has failed
STRAGGLER_SECONDS = 60.0  # for the other ranks after one has ended as a signal asked
_PR_SET_PDEATHSIG = 1
_ERROR = re.compile(r"^error: (.*)$")


def command(package: str, arguments: Sequence[str]) -> list[str]:
    """The command that is started, once for each rank."""
    return [sys.executable, "-m", package, *arguments]


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
    """Run a stage to its end on this node's ranks, or on those of all hosts; `line` gets each line of output, tagged
    for ranks other than 0.

    `started` is called when all ranks run: a display may start threads only after all processes are forked.
    Raises RankFailed when a rank fails. Ctrl-C and SIGTERM are passed on to the ranks, which may take the time that
    their step and its checkpoint need, or RLHF_GRACE_SECONDS; a second one ends them at once.
    """
    grace = seconds_of("RLHF_GRACE_SECONDS", math.inf)
    children: list[Child] = []
    try:
        if placement.hosts:
            for number, host in enumerate(placement.hosts):
                process = start(remote.command(host, "run"), os.environ, stdin=subprocess.PIPE)
                children.append(Child(number, process, host))
                children[-1].tell(remote.job(package, arguments, placement, node_rank=number))
        else:
            port = hardware.free_port() if placement.nodes == 1 else placement.master_port
            for local in range(placement.ranks):
                variables = environment(placement, rank=local, port=port)
                children.append(Child(int(variables["RANK"]), start(command(package, arguments), variables)))
        started()
        _follow(children, line)
    except (KeyboardInterrupt, Terminated) as error:
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        _end(children, number, grace, line)
        raise
    finally:
        _end(children, signal.SIGKILL, 5.0, line)
    failed = [child for child in children if child.process.returncode]
    if failed:
        raise _cause(failed, tagged=placement.world_size > 1)


def environment(placement: Placement, *, rank: int, port: int) -> dict[str, str]:
    """The environment of the rank with the number `rank` on this node. Our packages come first on the path; libraries
    get the number of threads and are told to be quiet."""
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
    variables["OMP_NUM_THREADS"] = str(hardware.threads(placement.ranks))
    if placement.gpus:
        # inference copy and cache come and go in each iteration, in other sizes
        variables.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    else:
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if "OMP_WAIT_POLICY" not in variables:
            variables.setdefault("GOMP_SPINCOUNT", SPINS)
    return variables | {
        "RANK": str((placement.node_rank or 0) * placement.ranks + rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(placement.world_size),
        "LOCAL_WORLD_SIZE": str(placement.ranks),
        "MASTER_ADDR": placement.master_addr or "127.0.0.1",
        "MASTER_PORT": str(port),
    }


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A child process, and its last errors: a rank, or the ssh that runs all ranks of `host`."""

    number: int
    process: subprocess.Popen[bytes]
    host: str = ""
    failure: RankFailed | None = None  # what the other end of the ssh said of its ranks
    errors: list[str] = field(default_factory=list)  # the last "error:" lines in a row
    last: str = ""  # its last line that is not empty
    ended: float | None = None
    killed_by_us: bool = False
    _tail: bytes = b""
    _in_errors: bool = False

    def tell(self, text: str) -> None:
        """Write a line to the other end of the ssh."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()

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
            if self.host and (failure := remote.read_failure(text)):
                self.failure = failure
                continue
            self._note(text)
            self.last = text or self.last
            told_apart = self.number == 0 or self.host or text.startswith("error: ")
            line(text if told_apart else f"[rank {self.number}] {text}")
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


def start(words: Sequence[str], variables: Mapping[str, str], *, stdin: int = subprocess.DEVNULL) -> Any:
    """A process that ends when this one does, with its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _DIE_WITH_OWNER, str(os.getpid()), *words],
        env=dict(variables),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that Ctrl-C reaches a rank only through us, and its children can be found
    )


def _follow(children: Sequence[Child], line: Callable[[str], None]) -> None:
    """Pass output on until every rank has ended; some time after the first failure the others are killed."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            assert child.process.stdout is not None
            selector.register(child.process.stdout, selectors.EVENT_READ, child)
        while True:
            for key, _ in selector.select(timeout=0.1):
                if not key.data.read(line):
                    selector.unregister(key.fileobj)
            running = [child for child in children if not child.poll()]
            if not running and (not selector.get_map() or _quiet_for(children, 1.0)):
                return  # a grandchild may hold the output open for ever
            failures = [
                child.ended + _patience(child) for child in children if child.ended and child.process.returncode
            ]
            if running and failures and time.monotonic() > min(failures):
                for child in running:
                    child.killed_by_us = True
                    _signal(child, signal.SIGKILL)


def _patience(failed: Child) -> float:
    """How long the others may run after one has failed, or has ended as a signal to some other rank asked."""
    signalled = failed.process.returncode in (EXIT_TERMINATED, EXIT_INTERRUPT)
    return STRAGGLER_SECONDS if signalled else LAST_WORDS_SECONDS


def _quiet_for(children: Sequence[Child], seconds: float) -> bool:
    return all(child.ended is not None and time.monotonic() - child.ended > seconds for child in children)


def _end(children: Sequence[Child], number: signal.Signals, seconds: float, line: Callable[[str], None]) -> None:
    """Pass a signal on to every child and wait for all of them; what is left after `seconds` is killed.

    A child that does not hear the signal holds no other up: some time after the first has ended all are killed.
    """
    for child in children:
        _signal(child, number)
    deadline = time.monotonic() + seconds
    try:
        with selectors.DefaultSelector() as selector:
            for child in children:
                if child.process.stdout is not None and not child.process.stdout.closed:
                    selector.register(child.process.stdout, selectors.EVENT_READ, child)
            while time.monotonic() < deadline and [child for child in children if not child.poll()]:
                for key, _ in selector.select(timeout=0.05):
                    if not key.data.read(line):
                        selector.unregister(key.fileobj)
                first = min((child.ended for child in children if child.ended), default=math.inf)
                deadline = min(deadline, first + STRAGGLER_SECONDS)
    finally:  # also on a second Ctrl-C
        for child in children:
            _signal(child, signal.SIGKILL)
            child.process.wait()
            child.poll()
            for pipe in filter(None, (child.process.stdin, child.process.stdout)):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _signal(child: Child, number: signal.Signals) -> None:
    """SIGKILL is for the child and its children. Other signals are for the child alone, which ends its own children: a
    launcher among them would pass the signal on, and a rank that gets a second one ends without a checkpoint."""
    if number == signal.SIGKILL:  # at the end of its input, the other end of an ssh kills its ranks
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, number)
    elif child.host:
        child.tell(number.name)
    elif not child.poll():
        os.kill(child.process.pid, number)


def _cause(failed: Sequence[Child], *, tagged: bool) -> BaseException:
    """The first failure. A rank that was killed from outside comes before ranks that failed because it was missing.
    When all ended as a signal asks, so do we: it was another node that got it."""
    codes = {child.process.returncode for child in failed}
    if codes <= {EXIT_TERMINATED, EXIT_INTERRUPT}:
        return Terminated() if EXIT_TERMINATED in codes else KeyboardInterrupt()
    own = [child for child in failed if not child.killed_by_us] or list(failed)
    first = min(own, key=lambda child: (not _killed(child), child.ended or 0.0))
    code = first.process.returncode
    if first.host:
        return first.failure or remote.lost(first.host, code, first.last)
    name = f"rank {first.number}" if tagged else "the process"
    if code < 0:
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        return RankFailed([f"{name} was killed by {signal.Signals(-code).name}{hint}"], EXIT_FAILURE)
    problems = first.errors or [f"{name} ended with exit code {code} and gave no reason"]
    return RankFailed(problems, EXIT_USER if code == EXIT_USER else EXIT_FAILURE)


def _killed(child: Child) -> bool:
    if child.failure is not None:
        return any(" was killed by " in problem for problem in child.failure.problems)
    return child.process.returncode < 0 or bool(child.host)  # an ssh without a word: its host is gone
