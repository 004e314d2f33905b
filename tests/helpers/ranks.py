"""Several ranks over gloo on this machine, forked from one server that has imported everything slow.

A test calls `run_ranks(function, *arguments, world_size=2)`; each rank calls `function(*arguments)` in a process group.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rlhf.hardware import free_port
from tests.pretend import build, card

PRELOADED = [
    "torch", "transformers", "deepspeed", "peft", "datasets", "pytest", "rlhf.models.export", "data.stage_data",
    "step1_sft.main", "step2_dpo.main", "step2_reward.main", "step3_ppo.main", "tests.helpers.tiny",
]  # fmt: skip
GRACE_SECONDS = 1.0  # what the other ranks get when one has failed
LOG_TAIL = 3000


class RanksFailed(AssertionError):
    """A rank raised, died or ran out of time; the message holds every failed rank's traceback."""


def run_ranks(
    function: Callable[..., Any],
    *arguments: Any,
    world_size: int = 2,
    timeout: float = 120.0,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """`function(*arguments)` on every rank of a fresh process group; what they returned, in the order of ranks.

    The function stands at the top level of its module, and arguments and results are pickled (tensors by value). Raises
    RanksFailed with the tracebacks and the end of the output of ranks that failed, after killing all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    payload = pickle.dumps((function, arguments))
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        started, ends = [], []
        port = free_port()
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            variables = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_PORT": str(port),
                "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", **(environment or {}),
            }  # fmt: skip
            log = Path(folder) / f"{rank}.log"
            process = context.Process(target=_rank, args=(payload, variables, str(log), theirs), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
            ends.append(ours)
        try:
            answers = _collect(ends, timeout)
            for end, answer in zip(ends, answers, strict=True):
                if answer is not None:
                    _say_goodbye(end)
            if all(answer is not None and answer[0] for answer in answers):
                for process in started:
                    process.join(10)
                return [answer[1] for answer in answers if answer is not None]
            raise RanksFailed(_report(answers, folder, timeout))
        finally:
            for process in started:
                if process.is_alive():
                    process.kill()
                process.join(10)
            for end in ends:
                end.close()


def _collect(ends: list[Connection], timeout: float) -> list[tuple[bool, Any] | None]:
    """(worked, result or traceback) of each rank; None of one that died or did not answer in time."""
    answers: list[tuple[bool, Any] | None] = [None] * len(ends)
    waiting = set(range(len(ends)))
    deadline = time.monotonic() + timeout
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready = wait([ends[rank] for rank in waiting], timeout=left)
        for rank in [rank for rank in waiting if ends[rank] in ready]:
            waiting.discard(rank)
            with contextlib.suppress(EOFError):
                answers[rank] = pickle.loads(ends[rank].recv_bytes())
            answer = answers[rank]
            if answer is None or not answer[0]:  # the others may be waiting for this one
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return answers


def _report(answers: list[tuple[bool, Any] | None], folder: str, timeout: float) -> str:
    lines = []
    for rank, answer in enumerate(answers):
        if answer is not None and answer[0]:
            continue
        why = f"gave no answer (it died, was stopped after another rank, or ran over {timeout:g} s)"
        lines.append(f"--- rank {rank} {'failed' if answer else why}")
        log = Path(folder) / f"{rank}.log"
        lines.append(log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:] if log.exists() else "")
        lines.append(answer[1] if answer else "")
    return "\n".join(lines)


def _rank(payload: bytes, variables: dict[str, str], log: str, end: Connection) -> None:
    """One rank, in a child of the server."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(variables)
    try:
        if os.environ.get(build.LIBRARY):
            card.install_as_told()
        from rlhf.training import distributed

        distributed.init(0)
        function, arguments = pickle.loads(payload)
        answer = (True, function(*arguments))
        message = pickle.dumps(answer)
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    end.send_bytes(message)
    try:
        end.recv_bytes()  # stay until all have answered: a group that shrinks makes the others fail
    finally:
        os._exit(0)  # the interpreter's own exit can abort inside the communication library


def _say_goodbye(end: Connection) -> None:
    with contextlib.suppress(OSError):
        end.send_bytes(b"bye")
