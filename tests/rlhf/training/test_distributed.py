"""Sums over ranks, seeds, and what must be true of the process group."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlhf import hardware
from rlhf.errors import ConfigError
from rlhf.training import distributed


def test_without_a_group_this_is_rank_0_of_1() -> None:
    if not torch.distributed.is_initialized():
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.sum_over_ranks(2, 0.5, torch.tensor(3)) == [2.0, 0.5, 3.0]
    assert distributed.max_over_ranks(4) == 4.0
    assert distributed.gather_objects("x") == ["x"]
    distributed.barrier()


@pytest.mark.usefixtures("one_rank")
def test_deepspeeds_shared_memory_all_reduce_is_off() -> None:
    """It ignores `group=`. The switch is private, so an update of DeepSpeed may lose it."""
    import deepspeed.ops

    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    assert torch.distributed.get_backend() == "gloo"


def test_a_seed_reaches_every_generator() -> None:
    draws = []
    for _ in range(2):
        distributed.set_seed(5)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]
    distributed.set_seed(2**40 + 1)  # numpy takes 32 bits


def test_a_steps_seed_depends_on_the_step_alone() -> None:
    """A resumed run draws the dropout of step 7 as the uninterrupted one did, whatever was drawn before."""

    def draw(seed: int, step: int) -> float:
        distributed.seed_step(seed, step)
        return float(torch.rand(()))

    first = draw(0, 7)
    torch.rand(100)
    assert draw(0, 7) == first
    assert len({draw(seed, step) for seed in range(3) for step in range(5)}) == 15


def _collectives() -> dict[str, Any]:
    rank = distributed.rank()
    distributed.seed_step(0, 0)
    return {
        "rank": (rank, distributed.world_size(), distributed.is_main()),
        "sums": distributed.sum_over_ranks(rank, 2**40 + rank, 0.5),
        "max": distributed.max_over_ranks(float(rank)),
        "objects": distributed.gather_objects({"rank": rank}),
        "draw": float(torch.rand(())),
        "device": str(distributed.device()),
    }


def test_three_ranks(run_ranks: Callable[..., list[Any]]) -> None:
    """Counts stay exact; ranks draw different dropout."""
    results = run_ranks(_collectives, world_size=3)
    assert [r["rank"] for r in results] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for result in results:
        assert result["sums"] == [3.0, 3 * 2**40 + 3, 1.5]
        assert result["max"] == 2.0
        assert result["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert result["device"].startswith("cpu")
    assert len({r["draw"] for r in results}) == 3


def _wait_for_one_that_writes() -> list[Any]:
    if distributed.rank() == 0:
        time.sleep(7)
    distributed.barrier()
    if distributed.rank() == 1:
        time.sleep(7)
    return [distributed.gather_objects(distributed.rank()), distributed.sum_over_ranks(1)]


@pytest.mark.slow
def test_ranks_wait_for_one_that_reads_or_writes_alone(run_ranks: Callable[..., list[Any]]) -> None:
    """Hashing 200 GB of a checkpoint took longer than the watchdog: every resume of a large model ended there."""
    results = run_ranks(_wait_for_one_that_writes, environment={"RLHF_TIMEOUT_SECONDS": "5"})
    assert results == [[[0, 1], [2.0]]] * 2


@pytest.mark.process
def test_bf16_is_for_cpus_that_multiply_in_it_and_may() -> None:
    """With the instructions forbidden, a product in bf16 took 40 times as long as one in fp32."""
    asked = "from rlhf.training.distributed import computes_in_bf16; print(computes_in_bf16())"
    environ = {**os.environ, "DS_ACCELERATOR": "cpu", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = subprocess.run([sys.executable, "-c", asked], env=environ, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "avx512_f"])
def test_the_instructions_that_multiply_in_bf16(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instruction: True})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    distributed.computes_in_bf16.cache_clear()
    try:
        assert distributed.computes_in_bf16() == (instruction != "avx512_f")
    finally:
        distributed.computes_in_bf16.cache_clear()


def test_gpus_that_torch_cannot_use_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that was too old for torch, eight processes loaded a 13B model on CPUs without a word."""

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nMore lines.")

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(hardware, "accelerators", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    with pytest.raises(
        ConfigError, match=r"8 GPU\(s\) are visible, .* too old \(found version 12020\)\.; install"
    ) as told:
        distributed.init()
    assert "More lines" not in str(told.value)
    monkeypatch.setattr(hardware, "accelerators", lambda: 0)
    distributed.refuse_unusable_gpus()
    monkeypatch.setattr(hardware, "accelerators", lambda: 8)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    distributed.refuse_unusable_gpus()


def test_free_memory_counts_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver counts cached blocks as used, so the room for the KV cache shrank after the first step."""

    class Cuda:
        def device_name(self) -> str:
            return "cuda"

    monkeypatch.setattr(distributed, "accelerator", Cuda)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 70_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 40_000)
    assert distributed.free_memory() == 35_000
