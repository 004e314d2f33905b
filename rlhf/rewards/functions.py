"""Reward functions, those of the user and the ready-made ones, called in a process of their own. Imports no torch.

with Functions(rewards, seconds=600) as functions:
    functions.scores("accuracy", Batch(prompts=[…], completions=[…], …))      [1.0, None, 0.5]
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf.errors import DataError, UserError
from rlhf.files import expand_user
from rlhf.rendering import Message
from rlhf.rewards.names import Reward
from rlhf.rewards.signature import Reads

ROOT = Path(__file__).resolve().parents[2]
Score = float | None
# A function's process is no rank and shows nothing by itself.
_NOT_FOR_IT = ("RLHF_EVENTS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Asked:
    """One prompt and its response as a function gets them. `is_text`: the data have the prompt as text, not as
    messages. `columns` are those of the data. `place` names the row in messages."""

    messages: Sequence[Message]
    response: str
    response_ids: Sequence[int] = ()
    is_text: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def prompt(self) -> Any:
        return self.messages[-1]["content"] if self.is_text else list(self.messages)

    @property
    def completion(self) -> Any:
        return self.response if self.is_text else [{"role": "assistant", "content": self.response}]


class Functions:
    """The functions of some rewards, in one process that starts when it is first needed.

    `seconds` is how long one call, or the import of a file, may take. Raises DataError, with one line that names the
    function and, where it is known, the row.
    """

    def __init__(self, rewards: Sequence[Reward], *, seconds: float) -> None:
        self.rewards = {reward.name: reward for reward in rewards if reward.is_called}
        self.seconds = seconds
        self.reads: dict[str, Reads] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None

    def load(self, name: str) -> Reads:
        """Import a function's file, once, and look at what it reads."""
        if name not in self.reads:
            reward = self.rewards[name]
            file = str(_path(reward)) if reward.kind == "function" else reward.target
            about = {"kind": reward.kind, "target": file, "function": reward.function}
            found = self._ask(reward, {"do": "load", **about, "options": dict(reward.options)}, "during its import")
            self.reads[name] = Reads(**found["reads"])
        return self.reads[name]

    def scores(self, name: str, asked: Sequence[Asked], *, state: Mapping[str, Any] | None = None) -> list[Score]:
        """A function's value for each row; None where it has none. Without rows the function is not called."""
        if not asked:
            return []
        reward, takes = self.rewards[name], self.load(name)
        given: dict[str, Any] = {
            "prompts": [a.prompt for a in asked],
            "completions": [a.completion for a in asked],
            "completion_ids": [list(a.response_ids) for a in asked],
            "completions_ids": [list(a.response_ids) for a in asked],
            "trainer_state": dict(state or {"global_step": 1, "max_steps": 1}),
            "log_extra": None,
            "log_metric": None,
        }
        columns = [*takes.needs, *takes.may]
        if takes.everything:
            columns = list(dict.fromkeys([*columns, *(column for a in asked for column in a.columns)]))
        arguments = {n: given[n] for n in takes.takes}
        columns = [c for c in columns if c not in given and _is_there(c, takes, asked)]
        arguments |= {column: [a.columns.get(column) for a in asked] for column in columns}
        request = {"do": "call", "arguments": arguments, "rows": len(asked)}
        return self._ask(reward, request, f"in a call for {len(asked)} responses", asked)["values"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._connection.close()
            self._process, self.reads = None, {}

    def __enter__(self) -> Functions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # of an interpreter that is ending
            self.close()

    def _ask(self, reward: Reward, request: dict[str, Any], doing: str, asked: Sequence[Asked] = ()) -> dict[str, Any]:
        process = self._start()
        try:
            self._connection.send_bytes(json.dumps({"name": reward.name, **request}).encode())
            if not self._connection.poll(self.seconds):
                self.close()
                raise DataError(
                    f"{reward.flag}: no end {doing} after {self.seconds:g} seconds; find out why it waits, or raise "
                    "--reward-timeout"
                )
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError, BrokenPipeError):
            code = process.wait()
            self.close()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise DataError(f"{reward.flag}: the process in which it runs {how} {doing}") from None
        if "problem" in answer:
            row = answer["row"]
            raise DataError(f"{reward.flag}: {f'{asked[row].place}: ' if row is not None else ''}{answer['problem']}")
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            ours, its = socket.socketpair()
            path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            variables = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT}
            variables |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
            with its:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rlhf.rewards.worker", str(its.fileno())],
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(its.fileno(),),
                    start_new_session=True,  # Ctrl-C reaches it only through us
                )
            self._connection = Connection(ours.detach())
        return self._process


def _is_there(column: str, takes: Reads, asked: Sequence[Asked]) -> bool:
    """A column that no row has is left out, so that a parameter's default counts."""
    return column in takes.needs or any(column in a.columns for a in asked)


def _path(reward: Reward) -> Path:
    return expand_user(Path(reward.target))


def look_at(rewards: Sequence[Reward], *, seconds: float) -> tuple[dict[str, Reads], list[str]]:
    """What each function reads, and a line for each that cannot be used. A file is imported again when it changed."""
    called = tuple(reward for reward in rewards if reward.is_called)
    changed = []
    for reward in called:
        try:
            changed.append(_path(reward).stat().st_mtime_ns if reward.kind == "function" else 0)
        except (OSError, ValueError):
            changed.append(-1)
    found, problems = _look_at(called, tuple(changed), seconds)
    return dict(found), list(problems)


@functools.lru_cache(maxsize=16)
def _look_at(
    rewards: tuple[Reward, ...], changed: tuple[int, ...], seconds: float
) -> tuple[dict[str, Reads], list[str]]:
    found: dict[str, Reads] = {}
    problems: list[str] = []
    with Functions(rewards, seconds=seconds) as functions:
        for reward in rewards:
            try:
                if reward.kind == "function" and not _path(reward).is_file():
                    raise DataError(f"{reward.flag}: {_path(reward)} does not exist")
                found[reward.name] = functions.load(reward.name)
            except UserError as error:
                problems += error.problems
            except (OSError, ValueError) as error:
                problems.append(f"{reward.flag}: {error}")
    return found, problems
