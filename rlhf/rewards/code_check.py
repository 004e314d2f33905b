"""Runs code that a model wrote, each piece in a process of its own with limits. Imports no torch.

The limits stop accidents: endless loops, memory, large files, processes. They are no wall against code that means harm:
it runs as this user, can read the user's files and can reach the network.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlhf import hardware

_BLOCK = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_LIMITED = Path(__file__).with_name("limited.py")
_TEXT = re.compile(r"\S")


def code_share(
    completions: Sequence[str], tests: Sequence[Any] | None, *, seconds: float, megabytes: int
) -> list[float | None]:
    """For each completion the share of its tests that pass; without tests 1 if the code runs, else 0."""
    asked = [_tests(tests[i]) if tests is not None else [] for i in range(len(completions))]

    def share(row: int) -> float:
        return passed(code_in(completions[row]), asked[row], seconds=seconds, megabytes=megabytes)

    with ThreadPoolExecutor(max_workers=max(1, hardware.cores())) as pool:
        return list(pool.map(share, range(len(completions))))


def code_in(text: str) -> str:
    """The last fenced block of a text, else all of it."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


def _tests(value: Any) -> list[str]:
    return [str(test) for test in (value if isinstance(value, list) else [value]) if test and _TEXT.search(str(test))]


def passed(code: str, tests: Sequence[str], *, seconds: float, megabytes: int) -> float:
    """The share of tests that run without an error after the code, within the limits; 0 where there is no code."""
    if not code.strip():
        return 0.0
    token = secrets.token_hex(16)  # so that code which prints or exits early cannot say that it passed
    pieces = [code, *tests]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        read, write = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_LIMITED), str(write), str(seconds), str(megabytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(write,),
                start_new_session=True,
            )
        finally:
            os.close(write)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                process.communicate(repr((token, pieces)).encode("utf-8", "backslashreplace"), timeout=seconds + 2)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(read, False)
        try:
            said = os.read(read, 1 << 20).decode("ascii", "replace").split("\n")
        except BlockingIOError:
            said = []
        finally:
            os.close(read)
    done = {line.partition(" ")[2] for line in said if line.startswith(f"{token} ")}
    if "0" not in done:
        return 0.0
    return sum(str(number) in done for number in range(1, len(pieces))) / len(tests) if tests else 1.0
