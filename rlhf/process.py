"""The place of this process in a run, from environment variables. Imports nothing of ours: every module may use it.

Only a stage is a rank. Other programs ignore what a launcher, or a cluster for each of its machines, left in the
environment: with RANK=1 they would be silent.
"""

from __future__ import annotations

import os


class _Program:
    is_rank = False
    started_alone = False


def set_is_rank(value: bool) -> None:
    """Say whether this program is a stage, so that the variables of a launcher mean it."""
    _Program.is_rank = value


def launched() -> bool:
    """Whether a launcher started this process as one of a group. RANK or WORLD_SIZE alone is a leftover."""
    return _Program.is_rank and _number("RANK") is not None and _number("WORLD_SIZE") is not None


def set_started_alone() -> None:
    """Say that no launcher started this process: it sets a launcher's variables itself, as rank 0 of 1."""
    _Program.started_alone = True


def signals_are_passed_on() -> bool:
    """Whether a launcher may pass on a signal that this process has got itself."""
    return launched() and not _Program.started_alone


def rank() -> int:
    """The number of this rank over all nodes; 0 in a process that no launcher started."""
    return (_number("RANK") or 0) if launched() else 0


def world_size() -> int:
    """The number of ranks over all nodes; 1 in a process that no launcher started."""
    return (_number("WORLD_SIZE") or 1) if launched() else 1


def local_world_size() -> int:
    """The number of ranks on this node; all of them where the launcher does not say it."""
    local = _number("LOCAL_WORLD_SIZE") or _number("LOCAL_SIZE") if launched() else None
    return local or world_size()


def local_rank() -> int:
    """The number of this rank on its node."""
    return (_number("LOCAL_RANK") or 0) if launched() else 0


def node_count() -> int:
    """The number of nodes; 1 where the launcher does not say how many ranks a node has."""
    return max(1, world_size() // local_world_size())


def node() -> int:
    """The number of this rank's node."""
    return rank() // local_world_size()


def launcher_problems() -> list[str]:
    """What a launcher's variables say that cannot be. A rank that believed it would wait for others for ever."""
    names = ("RANK", "WORLD_SIZE")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if len(given) < len(names):
        return []
    shown = " and ".join(f"{name}={value}" for name, value in given.items())
    way_out = "unset RANK and WORLD_SIZE to run one process, or start all ranks with a launcher"
    if not launched():
        return [f"{shown} are not numbers; {way_out}"]
    if rank() >= world_size():
        return [f"{shown} do not go together: ranks count from 0 to WORLD_SIZE - 1; {way_out}"]
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world_size() > 1 and missing:
        return [f"{shown} are set, but not {' and '.join(missing)}; {way_out}, which sets them"]
    return []


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def is_main() -> bool:
    """Whether this process is rank 0: the one that prints and writes the files of a run."""
    return rank() == 0


def sends_events() -> bool:
    """Whether `train.py` reads this process's output (RLHF_EVENTS=1), which is then written as events."""
    return os.environ.get("RLHF_EVENTS") == "1"


def shows_tracebacks() -> bool:
    """Whether errors come with their traceback (`--debug`, RLHF_DEBUG=1)."""
    return os.environ.get("RLHF_DEBUG") == "1"
