"""The driver's answers, by a pretended library."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf import nvml
from rlhf.nvml import Gpu


class Library:
    """Two GPUs: a process on the first, and on the second one whose memory the driver does not know. The first is cut
    into MIG devices."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 16_000_000_000, handle.value * 1_000_000
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        handle._obj.value = 1
        return 0 if uuid == b"MIG-1f" else 6

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 7, 5
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> int:
        version._obj.value = 12040
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, size: int) -> int:
        text.value = f"GPU-{handle.value}".encode()
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, size: int) -> int:
        text.value = b"Tesla T4"
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, found: Any) -> int:
        count._obj.value = 1
        found[0].pid, found[0].used = 40 + handle.value, 5 if handle.value == 1 else 2**64 - 1
        return 0


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    for function in (nvml.gpus, nvml.part_memory, nvml.cuda_version):
        function.cache_clear()
    yield
    for function in (nvml.gpus, nvml.part_memory, nvml.cuda_version):
        function.cache_clear()


def test_what_the_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert nvml.gpus() == [
        Gpu(0, "GPU-1", "Tesla T4", (7, 5), 16_000_000_000, 1_000_000, {41: 5}),
        Gpu(1, "GPU-2", "Tesla T4", (7, 5), 16_000_000_000, 2_000_000, {42: 0}),
    ]
    assert nvml.cuda_version() == (12, 4)
    assert (nvml.part_memory("MIG-1f"), nvml.part_memory("MIG-2e")) == (16_000_000_000, 0)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert (nvml.gpus(), nvml.cuda_version(), nvml.part_memory("MIG-1f")) == ([], None, 0)
