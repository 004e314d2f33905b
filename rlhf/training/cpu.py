"""Settings of a process whose tensors lie in main memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# Blocks from this size on are mapped on their own, outside of what is kept; glibc takes no larger threshold.
MAPPED_BYTES = 32 << 20
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names in malloc.h
_NEVER = -1
_PAD = 64 << 20


def tune() -> None:
    """Once in a process that trains on CPUs: denormal numbers are 0, and freed memory is kept for the next step.

    Tails of softmaxes below 1e-38 would cost a hundredfold. And by its own rules glibc hands large tensors back to the
    system as soon as they are freed, so that each step would pay for the same pages anew.
    """
    import torch

    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError):
        glibc = _glibc()
        glibc.mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        glibc.mallopt(_TRIM_THRESHOLD, _NEVER)
        glibc.mallopt(_TOP_PAD, _PAD)


def return_freed() -> None:
    """Hand what is free on from the C library to the system: glibc would keep it, unused, for itself."""
    with contextlib.suppress(OSError, AttributeError):
        _glibc().malloc_trim(0)


def _glibc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("not Linux")
    return ctypes.CDLL(None)
