"""What the driver of NVIDIA GPUs tells of them, by its management library. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_MOST_PROCESSES = 64


@dataclass(frozen=True)
class Gpu:
    """A GPU: its number in the order of the bus, its UUID (`GPU-…`) and name, its compute capability, its bytes of
    memory and those in use, and what each process has of them, by process id. In a container the driver tells of no
    process."""

    index: int
    uuid: str
    name: str
    capability: tuple[int, int]
    memory: int
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
    with _library() as library:
        count = ctypes.c_uint()
        if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        handles = [ctypes.c_void_p() for _ in range(count.value)]
        found = [library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(h)) for index, h in enumerate(handles)]
        return [_gpu(library, index, handles[index]) for index, code in enumerate(found) if code == 0]


@lru_cache(maxsize=8)
def part_memory(uuid: str) -> int:
    """Bytes of memory of a MIG device (`MIG-…`), a part of a GPU; 0 if the driver does not know it."""
    with _library() as library:
        handle, memory = ctypes.c_void_p(), _Memory()
        if library is not None and library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0:
            library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        return int(memory.total)


@lru_cache(maxsize=1)
def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver can run: (12, 4). None without a driver."""
    with _library() as library:
        version = ctypes.c_int()
        if library is None or library.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version)) != 0:
            return None
        return version.value // 1000, version.value % 1000 // 10


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """The management library, or None where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        library = None
    if library is None or library.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _gpu(library: Any, index: int, handle: ctypes.c_void_p) -> Gpu:
    memory, major, minor = _Memory(), ctypes.c_int(), ctypes.c_int()
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    uuid, name = (ctypes.create_string_buffer(96) for _ in range(2))
    library.nvmlDeviceGetUUID(handle, uuid, len(uuid))
    library.nvmlDeviceGetName(handle, name, len(name))
    count, found = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    if library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found) != 0:
        count.value = 0
    return Gpu(
        index=index,
        uuid=uuid.value.decode(),
        name=name.value.decode("utf-8", "replace"),
        capability=(major.value, minor.value),
        memory=int(memory.total),
        used=int(memory.used),
        processes={each.pid: _known(each.used) for each in found[: count.value]},
    )


def _known(size: int) -> int:
    return 0 if size == 2**64 - 1 else int(size)  # the driver's "not available"
