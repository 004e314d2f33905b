"""What this process is in a run, from its environment variables. Imports nothing, so that everything may ask."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this rank over all nodes; 0 in a process that no launcher started."""
    return int(os.environ.get("RANK") or 0)


def is_main() -> bool:
    """Whether this process is rank 0: the one that speaks and writes the files of a run."""
    return rank() == 0


def sends_events() -> bool:
    """Whether a `train.py` reads what this process prints (RLHF_EVENTS=1), so that output goes out as events."""
    return os.environ.get("RLHF_EVENTS") == "1"


def shows_tracebacks() -> bool:
    """Whether errors come with their traceback (`--debug`, RLHF_DEBUG=1)."""
    return os.environ.get("RLHF_DEBUG") == "1"
