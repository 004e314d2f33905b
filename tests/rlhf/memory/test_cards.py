"""rlhf/memory: the GPUs of this machine and of others."""

from __future__ import annotations

import pytest

from rlhf import nvml
from rlhf.memory import cards
from rlhf.memory.cards import described, main_memory, speed_of, this_card

H100 = nvml.Gpu(0, "GPU-1b0d", "NVIDIA H100 80GB HBM3", (9, 0), 85 * 10**9, 0, {})
T4 = nvml.Gpu(1, "GPU-5a0d", "Tesla T4", (7, 5), 16 * 10**9, 0, {})


def test_a_described_card_has_the_memory_that_is_named() -> None:
    card = described(80)
    assert card.memory == 80e9
    assert card.usable == pytest.approx(77.6e9)
    assert card.tflops == 312
    assert "taken for an A100" in card.name
    assert described(80, 989).tflops == 989
    assert "taken" not in described(80, 989).name


def test_the_smallest_visible_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed cards: the ranks are alike, so the smallest one decides."""
    monkeypatch.setattr(nvml, "gpus", lambda: [H100, T4])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    card = this_card()
    assert card is not None and (card.name, card.memory, card.tflops) == ("Tesla T4", 16e9, 65)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    card = this_card(tflops=1000)
    assert card is not None and (card.name, card.tflops, card.bandwidth) == ("NVIDIA H100 80GB HBM3", 1000, 3350)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a")
    card = this_card()
    assert card is not None and card.memory == 16e9


def test_a_mig_device_is_a_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan was that of the whole GPU, and fitted."""
    monkeypatch.setattr(nvml, "gpus", lambda: [H100])
    monkeypatch.setattr(nvml, "part_memory", {"MIG-1f": 17 * 10**9}.__getitem__)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1f")
    card = this_card()
    assert card is not None and (card.memory, card.tflops) == (17e9, pytest.approx(0.2 * 989))
    assert card.name == "a part of NVIDIA H100 80GB HBM3"


def test_no_driver_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", list)
    assert this_card() is None


@pytest.mark.parametrize(
    "name, tflops",
    [("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA A10G", 125), ("Mine", 0)],
)
def test_speeds_by_product_name(name: str, tflops: float) -> None:
    assert speed_of(name)[0] == tflops


def test_main_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n", "memory.max": "max\n"}
    monkeypatch.setattr(cards, "_read", lambda path: files[path.name])
    assert main_memory() == 16_384_000_000
    files["memory.max"] = "4000000000\n"
    assert main_memory() == 4e9
    files["meminfo"] = ""
    assert main_memory() == 0
