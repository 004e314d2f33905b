"""What the driver of NVIDIA GPUs tells of them, by its management library. Imports no torch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_MOST_PROCESSES = 64


@dataclass(frozen=True)
class Gpu:
    """A GPU: its number in the order of the bus, its UUID (`GPU-…`) and name, the bytes in use, and what each process
    has of them, by process id. In a container the driver tells of no process."""

    index: int
    uuid: str
    name: str
    used: int
    processes: dict[int, int]


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@lru_cache(maxsize=1)
def gpus() -> list[Gpu]:
    """All GPUs of the machine, those that are not visible to torch included; empty without a driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        return [_gpu(library, index) for index in range(count.value)]
    finally:
        library.nvmlShutdown()


def _gpu(library: Any, index: int) -> Gpu:
    handle, memory = ctypes.c_void_p(), _Memory()
    library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    uuid, name = (ctypes.create_string_buffer(96) for _ in range(2))
    library.nvmlDeviceGetUUID(handle, uuid, len(uuid))
    library.nvmlDeviceGetName(handle, name, len(name))
    count, found = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    if library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found) != 0:
        count.value = 0
    processes = {each.pid: _known(each.used) for each in found[: count.value]}
    return Gpu(index, uuid.value.decode(), name.value.decode(), int(memory.used), processes)


def _known(size: int) -> int:
    return 0 if size == 2**64 - 1 else int(size)  # the driver's "not available"
