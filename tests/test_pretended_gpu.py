"""The pretended GPU refuses what a real one refuses, and counts bytes, kernels and waits rightly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlhf.pipeline.launch import ROOT
from tests.helpers.gpu import environment, is_real
from tests.pretend import build, card

pytestmark = [pytest.mark.slow, pytest.mark.skipif(is_real(), reason="about the pretended GPU")]


def _refusal(do: Callable[[], Any]) -> str:
    try:
        do()
    except RuntimeError as error:
        return str(error)
    return ""


def _step(counted_on: str) -> None:
    weight = torch.zeros(4, device="cuda", requires_grad=True)
    weight.grad = torch.ones(4, device="cuda")
    optimizer = torch.optim.AdamW([weight], fused=True)
    state = {key: torch.zeros(4, device="cuda") for key in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": torch.tensor(1.0, device=counted_on), **state}
    optimizer.step()


def _refusals() -> dict[str, str]:
    here, there = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    linear = torch.nn.Linear(3, 3).cuda()
    wanted: dict[str, Callable[[], Any]] = {
        "two devices": lambda: here + there,
        "a list of both": lambda: torch.cat([here, there]),
        "a layer": lambda: linear(there),
        "ids of an embedding": lambda: torch.nn.functional.embedding(torch.tensor(1), here),
        "an output": lambda: torch.add(here, here, out=there),
        "a generator": lambda: here.normal_(generator=torch.Generator()),
        "a step count": lambda: _step("cpu"),
        "a collective": lambda: dist.all_reduce(there),
        "another device": lambda: torch.cuda.set_device(1),
        "memory": lambda: torch.empty(90 * 10**9, dtype=torch.uint8, device="cuda"),
    }
    found = {what: _refusal(do) for what, do in wanted.items()}
    allowed: dict[str, Callable[[], Any]] = {
        "a number": lambda: here * torch.tensor(2.0),
        "indices": lambda: here[torch.tensor([2, 0])],
        "a step count on the device": lambda: _step("cuda"),
        "a collective of the device": lambda: dist.all_reduce(here),
    }
    return found | {what: _refusal(do) for what, do in allowed.items()}


def test_what_a_device_refuses(run_on_gpu: Callable[..., list[Any]]) -> None:
    (found,) = run_on_gpu(_refusals)
    two = "Expected all tensors to be on the same device"
    assert {what: two in said for what, said in found.items() if two in said} == dict.fromkeys(
        ("two devices", "a list of both", "a layer", "ids of an embedding", "an output", "a step count"), True
    )
    assert "generator" in found["a generator"] and "cpu" in found["a collective"]
    assert "invalid device ordinal" in found["another device"] and "out of memory" in found["memory"]
    assert not any(found[what] for what in ("a number", "indices", "a collective of the device"))
    assert not found["a step count on the device"]


@pytest.mark.process
def test_a_command_of_your_own_runs_on_it() -> None:
    variables = {**os.environ, build.LIBRARY: environment()[build.LIBRARY]}
    for program, code, said in (
        ("import torch; print(torch.ones(2, device='cuda').sum().device)", 0, "cuda:0\n"),
        ("raise SystemExit(7)", 7, ""),
    ):
        words = [sys.executable, "-m", "tests.pretend", sys.executable, "-c", program]
        done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, said), done.stderr


def _bytes() -> dict[str, int]:
    start = torch.cuda.memory_allocated()
    held: dict[str, int] = {}

    def note(what: str) -> None:
        held[what] = torch.cuda.memory_allocated() - start

    table = torch.zeros(1000, 10, device="cuda")
    note("40,000 of a table")
    views = [table[3:], table.t(), table.view(10, 1000), table.unfold(0, 2, 2), table.detach()]
    note("views take none")
    views[0].add_(1)
    ordinary = float(table.sum())
    found = table > 0
    note("10,000 of a comparison")
    indices = found.nonzero()
    note("160 a row and number of what was found")
    del found, indices
    grown = torch.empty(0, device="cuda")
    torch.cat([table, table], out=grown)
    note("80,000 of an output that grew")
    del grown, views, table
    note("nothing stays")
    peak = torch.cuda.max_memory_allocated() - start
    return {**held, "sum": int(ordinary), "peak": peak}


def test_bytes_are_exact(run_on_gpu: Callable[..., list[Any]]) -> None:
    (found,) = run_on_gpu(_bytes)
    assert found == {
        "40,000 of a table": 40_000, "views take none": 40_000, "10,000 of a comparison": 50_000,
        "160 a row and number of what was found": 50_000 + 9970 * 16, "80,000 of an output that grew": 120_000,
        "nothing stays": 0, "sum": 9970, "peak": 50_000 + 9970 * 16,
    }  # fmt: skip


def _counts() -> dict[str, int]:
    table = torch.ones(4, 4, device="cuda")
    with card.counted() as found:
        (table @ table).relu().t()  # two kernels and a view
        table.sum().item()  # a kernel and a wait
        table.cpu()  # a copy and a wait
        torch.ones(2).to("cuda", non_blocking=True)  # a copy
    return {
        "kernels": card.kernels(found),
        "waits": card.waits(found),
        "copies": found["device to host"] * 10 + found["host to device"],
    }


def test_kernels_copies_and_waits_are_counted(run_on_gpu: Callable[..., list[Any]]) -> None:
    assert run_on_gpu(_counts) == [{"kernels": 4, "waits": 2, "copies": 11}]  # item() is among the kernels


def _attention() -> list[tuple[str, float]]:
    """By case: which kernel the device has for it, and how far results and gradients are from the CPU's."""
    found = []
    for dtype, key_heads, masked in (
        (torch.bfloat16, 2, False),
        (torch.float32, 4, True),
        (torch.bfloat16, 2, True),
    ):
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(2, heads, 6, 16, generator=generator).to(dtype) for heads in (4, key_heads, key_heads)]
        mask = torch.ones(6, 6, dtype=torch.bool).tril() if masked else None
        outcomes = []
        with card.counted() as counted:
            for device in ("cpu", "cuda"):
                inputs = [tensor.detach().to(device).requires_grad_() for tensor in given]
                out = torch.nn.functional.scaled_dot_product_attention(
                    *inputs,
                    attn_mask=None if mask is None else mask.to(device),
                    is_causal=mask is None,
                    enable_gqa=key_heads < 4,
                )
                out.float().square().sum().backward()
                outcomes.append([out, *(tensor.grad for tensor in inputs)])
        kernel = next(name for name in counted if "attention" in name or name == "aten::_softmax")
        distances = [(a.float() - b.float().cpu()).abs().max() for a, b in zip(*outcomes, strict=True)]
        found.append((kernel, float(torch.stack(distances).max())))
    return found


def test_attention_keeps_no_scores_where_a_gpu_keeps_none(run_on_gpu: Callable[..., list[Any]]) -> None:
    """With a mask and grouped heads torch has no fused kernel for GPUs."""
    (found,) = run_on_gpu(_attention)
    assert [name for name, _ in found] == [
        "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention", "aten::_softmax"
    ]  # fmt: skip
    assert [distance < limit for (_, distance), limit in zip(found, (0.2, 1e-5, 0.2), strict=True)] == [True] * 3
