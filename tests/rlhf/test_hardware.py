"""What the machine has, told without torch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf import hardware, nvml
from rlhf.errors import error_lines
from rlhf.hardware import visible
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.placement import place
from rlhf.pipeline.placement import placement_text as describe_placement
from rlhf.stage_config import stage_engine_problems
from step1_sft.config import SFTConfig
from step3_ppo.config import PPOConfig


@pytest.mark.parametrize(
    "listed, expected",
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("-1", []),
        ("2,0", ["2", "0"]),
        ("1,7,2", ["1"]),  # the driver stops at the first that does not exist
        ("GPU-8932f937,1", ["GPU-8932f937", "1"]),
        ("two", []),  # counted as a GPU
        ("1,cuda:2", ["1"]),
    ],
)
def test_visible_devices(listed: str | None, expected: list[str]) -> None:
    assert visible(4, listed) == expected


UUIDS = ("GPU-aa10", "GPU-aa20", "GPU-bb30", "GPU-cc40")


@pytest.mark.parametrize(
    "listed, expected",
    [
        ("GPU-bb30,GPU-aa10", ["GPU-bb30", "GPU-aa10"]),
        ("GPU-bb", ["GPU-bb"]),
        ("GPU-aa,GPU-bb", []),  # names two
        ("GPU-bb30,GPU-dd50,GPU-aa10", ["GPU-bb30"]),
        ("MIG-9f,MIG-8e", ["MIG-9f"]),  # a process sees one, and NCCL joins no two of a GPU
    ],
)
def test_visible_devices_by_uuid(listed: str, expected: list[str]) -> None:
    """Every UUID counted as a GPU, whether it existed or not."""
    assert visible(4, listed, UUIDS) == expected


def test_only_visible_gpus_say_whether_there_is_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old card that nobody uses made a run fp32."""
    found = [nvml.Gpu(i, UUIDS[i], "card", capability, 0, 0, {}) for i, capability in enumerate(((7, 0), (8, 0)))]
    monkeypatch.setattr(nvml, "gpus", lambda: found)
    monkeypatch.setattr(hardware, "torch_build", lambda: "cuda")
    for listed, gpus, bf16 in (("0,1", 2, False), ("1", 1, True), ("GPU-aa20", 1, True), ("GPU-aa10", 1, False)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert (hardware.accelerators(), hardware.bf16_gpus()) == (gpus, bf16)


def test_no_device_is_visible_where_none_is() -> None:
    assert visible(0, "GPU-8932f937") == []


@pytest.mark.parametrize(
    "version, build",
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", ""),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", "rocm"),
        ("cuda = '11.8'\n", "cuda"),
    ],
)
def test_the_build_of_torch_is_read_from_its_version_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, build: str
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{version}")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    hardware.torch_toolkits.cache_clear()
    try:
        assert hardware.torch_build() == build
    finally:
        hardware.torch_toolkits.cache_clear()


def test_a_container_s_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert hardware.cores() == 4
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert hardware.cores() == 64


# --- ranks -----------------------------------------------------------------------------------------------------------


def _machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int, cores: int) -> None:
    monkeypatch.setattr(hardware, "accelerators", lambda: gpus)
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    "gpus, flags, ranks, on_gpus, text",
    [
        (8, {}, 8, True, "8 GPUs"),
        (8, {"num_gpus": 2}, 2, True, "2 GPUs"),
        (8, {"num_gpus": 0}, 1, False, "1 CPU rank, 16 threads each"),
        (0, {}, 1, False, "1 CPU rank, 16 threads each"),
        (0, {"num_gpus": 4}, 4, False, "4 CPU ranks, 4 threads each"),
        (8, {"num_nodes": 2, "node_rank": 1, "master_addr": "10.0.0.1"}, 8, True, "2 nodes × 8 GPUs"),
    ],
)
def test_ranks_by_flags_and_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, flags: dict[str, object], ranks: int, on_gpus: bool, text: str
) -> None:
    _machine(monkeypatch, gpus=gpus, cores=16)
    placement, problems = place(PipelineConfig(**flags))  # type: ignore[arg-type]
    assert problems == []
    assert (placement.ranks, placement.gpus, describe_placement(placement)) == (ranks, on_gpus, text)


def test_more_ranks_than_the_machine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, gpus=2, cores=16)
    assert place(PipelineConfig(num_gpus=8))[1] == ["--num-gpus 8: only 2 visible here; use --num-gpus 2"]
    _machine(monkeypatch, gpus=0, cores=4)
    monkeypatch.setattr(hardware, "idle_gpus", lambda: 8)
    (problem,) = place(PipelineConfig(num_gpus=8))[1]
    assert "there are 8 GPUs, but the installed torch is built without GPU support" in problem
    assert "use --num-gpus 4 or less" in problem


# --- dtype, optimiser and ZeRO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, gpus, message",
    [
        ({"dtype": "fp16"}, False, "s.dtype=fp16 needs a GPU"),
        ({"dtype": "bf16", "zero_stage": 0}, False, "s.zero_stage=0 with bf16 drifts from fp32"),
        ({"dtype": "auto", "zero_stage": 0}, True, "s.zero_stage=0 with bf16 drifts from fp32"),
        ({"optimizer": "adafactor"}, False, "s.zero_stage=1 with fp32: adafactor works at ZeRO-0 in fp32 only"),
        (
            {"optimizer": "adafactor", "zero_stage": 3},
            False,
            "s.zero_stage=3 with fp32: adafactor works at ZeRO-0 in fp32 only",
        ),
        ({"offload_optimizer": True, "zero_stage": 0}, False, "offload_optimizer needs ZeRO 1, 2 or 3"),
        ({"optimizer": "adafactor", "zero_stage": 0}, False, None),
        ({"dtype": "auto", "zero_stage": 0}, False, None),
        ({"dtype": "bf16"}, False, None),
        ({"dtype": "fp16"}, True, None),
    ],
)
def test_what_does_not_go_together(settings: dict[str, object], gpus: bool, message: str | None) -> None:
    found = stage_engine_problems(SFTConfig(**settings), "s", gpus=gpus, bf16=gpus)  # type: ignore[arg-type]
    assert found == [] if message is None else len(found) == 1 and message in found[0]


def test_only_trained_roles_are_looked_at() -> None:
    """The frozen reference and reward model stand at ZeRO-0 by themselves; they keep no fp32 weights to lose."""
    config = PPOConfig(dtype="bf16", critic_zero_stage=0)
    assert [p.partition("=")[0] for p in stage_engine_problems(config, "p", gpus=False, bf16=False)] == [
        "p.critic_zero_stage"
    ]


def test_batch_algebra() -> None:
    config = SFTConfig(mini_batch_size=32, micro_batch_size=4)
    assert config.batch_algebra(2) == "mini_batch_size 32 = 2 ranks × 4 micro-batches × 4 rows"
    assert config.batch_algebra(1) == "mini_batch_size 32 = 1 rank × 8 micro-batches × 4 rows"
    uneven = SFTConfig(mini_batch_size=10, micro_batch_size=4)
    assert uneven.batch_algebra(2) == "mini_batch_size 10 fills 2 ranks × 2 micro-batches × 4 rows"
    assert SFTConfig(mini_batch_size=2).batch_problems("s", 4) == [
        "s.mini_batch_size=2 leaves some of the 4 ranks without a row; use at least 4, or fewer ranks"
    ]


@pytest.mark.parametrize(
    "error, words, code",
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "lower micro_batch_size", 1),
        (MemoryError(), "lower micro_batch_size", 1),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), "the disk is full", 2),
        (PermissionError(13, "Permission denied", "x.yaml"), "no permission to use x.yaml", 2),
        (RuntimeError("first line\nsecond"), "RuntimeError: first line", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_errors_as_the_user_sees_them(error: BaseException, words: str, code: int) -> None:
    lines, found = error_lines(error)
    assert len(lines) == 1
    assert words in lines[0]
    assert found == code
