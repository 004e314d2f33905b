"""The place of this process in a run, from environment variables. Imports nothing of ours: every module may use it."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this rank over all nodes; 0 in a process that no launcher started."""
    return int(os.environ.get("RANK") or 0)


def is_main() -> bool:
    """Whether this process is rank 0: the one that prints and writes the files of a run."""
    return rank() == 0


def sends_events() -> bool:
    """Whether `train.py` reads this process's output (RLHF_EVENTS=1), which is then written as events."""
    return os.environ.get("RLHF_EVENTS") == "1"


def shows_tracebacks() -> bool:
    """Whether errors come with their traceback (`--debug`, RLHF_DEBUG=1)."""
    return os.environ.get("RLHF_DEBUG") == "1"
