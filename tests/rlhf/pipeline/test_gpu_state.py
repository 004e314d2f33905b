"""What is said of GPUs before a run uses them, by a pretended driver."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf import hardware, nvml
from rlhf.nvml import Gpu
from rlhf.pipeline import gpu_state
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.gpu_state import gpu_problems, gpu_warnings
from rlhf.pipeline.placed import Placement
from rlhf.pipeline.placement import place

A100, T4 = "NVIDIA A100-SXM4-80GB", "Tesla T4"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """`gpus(Gpu(...), ...)`: the driver tells of these."""
    monkeypatch.setattr(hardware, "torch_toolkits", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(nvml, "cuda_version", lambda: (13, 0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_state.shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 34))

    def put(*found: Gpu) -> None:
        monkeypatch.setattr(nvml, "gpus", lambda: list(found))

    return put


def gpu(index: int, *, name: str = A100, used: int = 0, processes: dict[int, int] | None = None) -> Gpu:
    return Gpu(index, f"GPU-{index}{index}aa", name, (8, 0), 80 * 10**9, used, processes or {})


def warnings(ranks: int) -> list[str]:
    return gpu_warnings(Placement(ranks=ranks, gpus=True))


def test_free_gpus_are_not_worth_a_word(gpus) -> None:
    gpus(gpu(0, used=500_000_000), gpu(1))
    assert warnings(2) == []
    assert gpu_warnings(Placement(ranks=8)) == []


def test_gpus_in_use_are_named_with_process_and_bytes(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ended with `CUDA out of memory`, minutes later."""
    me = Path("/proc/self/comm").read_text().strip()
    gpus(gpu(0, used=12_300_000_000, processes={os.getpid(): 12_300_000_000}), gpu(1, used=40_000_000_000))
    assert warnings(2) == [
        f"GPU 0 ({A100}) is in use by process {os.getpid()} ({me}) with 12.3 GB; it may lack that memory",
        f"GPU 1 ({A100}): 40.0 GB are in use by processes that cannot be seen from here; it may lack that memory",
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-11")
    assert [line[:5] for line in warnings(1)] == ["GPU 1"]


def test_different_cards(gpus) -> None:
    gpus(gpu(0), gpu(1, name=T4))
    (line,) = warnings(2)
    assert line.startswith(
        f"the GPUs differ (0 {A100}, 1 {T4}): the slowest sets the pace, and dtype=auto is bf16 only"
    )
    assert warnings(1) == []


def test_the_shared_memory_of_a_container(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL ended with `unhandled system error`."""
    gpus(*map(gpu, range(8)))
    monkeypatch.setattr(gpu_state.shutil, "disk_usage", lambda path: SimpleNamespace(total=64 << 20))
    assert warnings(8) == [
        "/dev/shm holds 64 MB, and NCCL may need 1024 MB for 8 ranks; start the container with --shm-size=8g or "
        "--ipc=host"
    ]
    assert warnings(1) == []


@pytest.mark.parametrize(
    "listed, named", [("7", False), ("GPU-ff", False), ("two", False), ("1", True), ("GPU-11", True), ("-1", True)]
)
def test_a_list_that_names_no_gpu(gpus, monkeypatch: pytest.MonkeyPatch, listed: str, named: bool) -> None:
    """The run went to the CPU without a word."""
    gpus(gpu(0), gpu(1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    expected = f"CUDA_VISIBLE_DEVICES={listed} names no GPU of this machine, which has 0 (GPU-00aa), 1 (GPU-11aa); "
    assert [line.startswith(expected) for line in gpu_problems()] == ([] if named else [True])
    assert bool(place(PipelineConfig())[1]) is not named
    assert place(PipelineConfig(num_gpus=0))[1] == []


@pytest.mark.parametrize(
    "listed, stranger",
    [
        ("1,7,0", "7"),
        ("GPU-11,GPU-ff", "GPU-ff"),
        ("0,,1", "an empty entry"),
        ("0,two", "two"),
        ("0,GPU-", "GPU-"),  # names both
        ("0,1,0", "0"),
        ("1, 0", ""),
        ("GPU-11,GPU-00aa", ""),
        ("1,-1,0", ""),
        ("MIG-1f,MIG-2e", ""),
    ],
)
def test_a_list_with_a_stranger_in_it(gpus, monkeypatch: pytest.MonkeyPatch, listed: str, stranger: str) -> None:
    """The driver shows the GPUs before it, so the run took fewer than were named, without a word."""
    gpus(gpu(0), gpu(1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    expected = f"CUDA_VISIBLE_DEVICES={listed}: the driver stops at {stranger}, which is no GPU of this machine, "
    assert [line.startswith(expected) for line in place(PipelineConfig())[1]] == ([True] if stranger else [])
    assert place(PipelineConfig(num_gpus=0))[1] == []


def test_more_ranks_than_mig_devices(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(gpu(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1f,MIG-2e")
    assert place(PipelineConfig())[0].ranks == 1
    assert place(PipelineConfig(num_gpus=2))[1] == ["--num-gpus 2: only 1 visible here; use --num-gpus 1"]


def test_a_driver_that_is_too_old_for_torch(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks were started, and each ended with torch's own words."""
    gpus(gpu(0))
    monkeypatch.setattr(nvml, "cuda_version", lambda: (12, 4))
    assert place(PipelineConfig())[1] == [
        "the NVIDIA driver runs CUDA 12.4 at most, and the installed torch needs CUDA 13.0: install a newer driver, or "
        "a torch that is built for CUDA 12 (--num-gpus 0 runs on the CPU)"
    ]
    assert place(PipelineConfig(num_gpus=0))[1] == []
    monkeypatch.setattr(hardware, "torch_toolkits", lambda: {"cuda": "12.8"})  # its driver may be of any 12
    assert place(PipelineConfig())[1] == []
