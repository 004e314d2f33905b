"""An engine goes on bit for bit from what was written of it, and is read back under any ranks and ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models.lora import attach
from rlhf.stage_config import LoraSettings
from rlhf.training import engine_state
from rlhf.training.checkpoint import Checkpoint, Checkpoints
from rlhf.training.engine import TrainEngine
from rlhf.training.zero_internals import Fragment
from tests.helpers import engines
from tests.helpers.tiny import tiny_lm

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
ZERO_STAGES = [0, 1, 2, 3]
NOISE = 2e-6  # fp32 sums of another order; the weights move by 0.02 in these steps


def make(zero_stage: int, *, seed: int = 0, lora: bool = False, **changes: Any) -> TrainEngine:
    """An engine on a tiny model; the weights that stay frozen under LoRA are the same for every seed."""
    if not lora:
        return engines.engine(zero_stage, model=tiny_lm(seed=seed), **changes)
    torch.manual_seed(seed)  # of the adapters
    return engines.engine(zero_stage, model=attach(tiny_lm(), LoraSettings(lora_rank=2, lora_alpha=8)), **changes)


def advance(train: TrainEngine, count: int = 1) -> None:
    for _ in range(count):
        engines.backward(train, range(engines.ROWS), 8)
        assert train.step().applied


def average_of(train: TrainEngine) -> dict[str, list[Tensor]]:
    """An extra in the layout of the masters: half of them."""
    return {"ema": [master.detach().float() / 2 for master in train.masters()]}


def save(folder: Path, train: TrainEngine, step: int = 2, **more: Any) -> None:
    Checkpoints(folder, keep=2).save(step, {"model": train}, {"note": step}, **more)


def latest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder, keep=2).latest()
    assert found is not None
    return found


def trained(train: TrainEngine) -> dict[str, Tensor]:
    return engines.weights(train, trained_only=True)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- going on --------------------------------------------------------------------------------------------------------


def goes_on(folder: Path, zero_stage: int, lora: bool, **changes: Any) -> dict[str, bool]:
    """Two steps, a checkpoint, a third step; and the third step from the checkpoint in an engine of other weights."""
    first = make(zero_stage, lora=lora, **changes)
    advance(first, 2)
    average = average_of(first)
    save(folder, first, extras={"model": average})
    at_checkpoint = trained(first)
    advance(first)

    second = make(zero_stage, seed=7, lora=lora, **changes)
    assert not same(trained(second), at_checkpoint)
    restored = {"ema": [torch.zeros_like(master, dtype=torch.float32) for master in second.masters()]}
    latest(folder).restore({"model": second}, {"model": restored})
    back = same(trained(second), at_checkpoint)
    halves = all(
        torch.equal(_held(second, restored["ema"], f), _held(second, average["ema"], f)) for f in second.fragments()
    )
    advance(second)
    in_module = {n: p.detach().clone() for n, p in second.module.named_parameters() if p.requires_grad}
    expected = {n: p.detach().clone() for n, p in first.module.named_parameters() if p.requires_grad}
    return {
        "weights come back": back,
        "the average comes back": halves,
        "the next step is the same": same(trained(second), trained(first)) and same(in_module, expected),
        "the counts are the same": (second.steps_done, second.steps_skipped) == (3, 0),
    }


def _held(train: TrainEngine, flats: list[Tensor], f: Fragment) -> Tensor:
    return flats[f.flat].view(-1)[f.offset : f.offset + f.count]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_restored_engine_goes_on_bit_for_bit(zero_stage: int, lora: bool, tmp_path: Path) -> None:
    found = goes_on(tmp_path, zero_stage, lora)
    assert all(found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_bf16_goes_on_from_its_fp32_masters(zero_stage: int, tmp_path: Path) -> None:
    """Weights in bf16 have lost what a small step adds; a checkpoint of them alone would round the masters."""
    found = goes_on(tmp_path, zero_stage, False, dtype=torch.bfloat16)
    assert all(found.values()), found


def test_adafactors_factored_state_comes_back(tmp_path: Path) -> None:
    found = goes_on(tmp_path, 0, False, optimizer="adafactor")
    assert all(found.values()), found


def _goes_on_everywhere(folder: str) -> dict[str, bool]:
    found = {}
    for zero_stage, lora in [(0, False), (1, False), (2, True), (3, False), (3, True)]:
        place = Path(folder) / f"{zero_stage}-{lora}"
        found |= {f"ZeRO-{zero_stage}, LoRA {lora}: {k}": v for k, v in goes_on(place, zero_stage, lora).items()}
    return found


def test_two_ranks_go_on_bit_for_bit(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    for found in run_ranks(_goes_on_everywhere, str(tmp_path), timeout=300):
        assert all(found.values()), [name for name, good in found.items() if not good]


# --- on other ranks, at another ZeRO stage ---------------------------------------------------------------------------


def write_all(folder: str) -> dict[int, dict[str, Tensor]]:
    """A checkpoint after two steps at each ZeRO stage; the weights after a third."""
    after = {}
    for zero_stage in ZERO_STAGES:
        train = make(zero_stage)
        advance(train, 2)
        save(Path(folder) / str(zero_stage), train, extras={"model": average_of(train)})
        advance(train)
        after[zero_stage] = trained(train)
    return after


def read_all(folder: str, after: dict[int, dict[str, Tensor]]) -> dict[str, tuple[float, float]]:
    """Each of those checkpoints at two ZeRO stages: how far the weights after a third step are from those of the
    writer, and the average from half the masters."""
    found = {}
    for written in ZERO_STAGES:
        for zero_stage in (written, (written + 1) % 4):  # the same, and another: all write and all read alike
            train = make(zero_stage, seed=7)
            extra = {"ema": [torch.zeros_like(master) for master in train.masters()]}
            latest(Path(folder) / str(written)).restore({"model": train}, {"model": extra})
            pairs = [
                (_held(train, extra["ema"], f), _held(train, train.masters(), f).detach()) for f in train.fragments()
            ]
            halves = max(float((2 * average - master).abs().max()) for average, master in pairs)
            advance(train)
            found[f"written at {written}, read at {zero_stage}"] = (
                engines.furthest(trained(train), after[written]),
                halves,
            )
    return found


@pytest.mark.parametrize("writers, readers", [(2, 1), (1, 2)])
def test_other_ranks_and_zero_stages_go_on_to_float_noise(
    writers: int, readers: int, run_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Masters, Adam's moments and the moving average are cut again; wrongly cut ones would be off by a whole step."""
    after = (
        run_ranks(write_all, str(tmp_path), world_size=writers, timeout=300)[0]
        if writers > 1
        else write_all(str(tmp_path))
    )
    found = (
        run_ranks(read_all, str(tmp_path), after, world_size=readers, timeout=300)[0]
        if readers > 1
        else read_all(str(tmp_path), after)
    )
    assert len(found) == 8
    for name, (weights, halves) in found.items():
        assert weights < NOISE, name
        assert halves == 0, name


# --- DeepSpeed's private parts ---------------------------------------------------------------------------------------


def spans(zero_stage: int) -> list[tuple[str, int, int, bool]]:
    """(parameter, start, count, whether the master's elements there are the parameter's) of what this rank holds."""
    train = make(zero_stage)
    whole = engines.weights(train)
    prefix = "lm."
    return [
        (
            f.name,
            f.start,
            f.count,
            torch.equal(
                _held(train, train.masters(), f),
                whole[f.name.removeprefix(prefix)].view(-1)[f.start : f.start + f.count],
            ),
        )
        for f in train.fragments()
    ]


def all_spans() -> dict[int, list[tuple[str, int, int, bool]]]:
    return {zero_stage: spans(zero_stage) for zero_stage in ZERO_STAGES}


@pytest.mark.parametrize("world_size", [1, 2])
def test_fragments_are_the_parameters_and_cover_each_once(world_size: int, run_ranks: Callable[..., list[Any]]) -> None:
    """Where elements lie is read from attributes that DeepSpeed does not promise (`rlhf/training/zero_internals.py`).
    When a new version moves them, this says so before a checkpoint is wrong."""
    ranks = run_ranks(all_spans, world_size=world_size, timeout=300) if world_size > 1 else [all_spans()]
    sizes = {f"lm.{name}": p.numel() for name, p in tiny_lm().named_parameters()}
    for zero_stage in ZERO_STAGES:
        held = ranks[:1] if zero_stage == 0 else ranks  # at ZeRO-0 each rank holds all
        found = [span for rank in held for span in rank[zero_stage]]
        assert all(equal for _, _, _, equal in found), f"ZeRO-{zero_stage}"
        assert {name for name, _, _, _ in found} == set(sizes)
        for name, size in sizes.items():
            pieces = sorted((start, start + count) for other, start, count, _ in found if other == name)
            edges = [edge for piece in pieces for edge in piece]
            assert edges[0] == 0 and edges[-1] == size, f"ZeRO-{zero_stage}: {name} {pieces}"
            assert edges[1:-1:2] == edges[2::2], f"ZeRO-{zero_stage}: {name} {pieces}"


def test_a_fused_optimisers_step_count_is_on_the_device_of_its_tensor() -> None:
    """Every resume on a GPU ended at its first step: torch's fused AdamW refused a count on the CPU."""
    flat = torch.nn.Parameter(torch.empty(4, device="meta"))
    fused = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(2))]}], fused=True)
    plain = torch.optim.Adafactor([torch.nn.Parameter(torch.zeros(2, 2))])
    assert engine_state._step_count(fused, flat, 3.0).device.type == "meta"
    counted = engine_state._step_count(plain, flat, 3.0)
    assert (counted.device.type, float(counted)) == ("cpu", 3.0)
