"""Settings of a process that trains on CPUs: denormal numbers, and what the C library does with freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# glibc maps blocks of at least this size one by one and returns them when freed. It allows no larger threshold.
MAPPED_BYTES = 32 << 20
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names in malloc.h
_NEVER = -1
_PAD = 64 << 20


def tune() -> None:
    """Call it once: denormal numbers become 0, and the C library keeps freed memory for the next step.

    Arithmetic with denormal numbers (below 1e-38, in the tails of softmaxes) takes a hundred times as long. And without
    this, glibc returns the memory of large tensors to the system when they are freed, and each step pays for getting
    it again.
    """
    import torch

    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError):
        glibc = _glibc()
        glibc.mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        glibc.mallopt(_TRIM_THRESHOLD, _NEVER)
        glibc.mallopt(_TOP_PAD, _PAD)


def return_freed() -> None:
    """Return free memory from the C library to the system. Without effect outside glibc."""
    with contextlib.suppress(OSError, AttributeError):
        _glibc().malloc_trim(0)


def _glibc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("not Linux")
    return ctypes.CDLL(None)
