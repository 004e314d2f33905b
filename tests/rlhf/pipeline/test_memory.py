"""train.py knows the memory: for this machine and for others, without a network; what does not fit is refused."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf import hardware, nvml
from rlhf.files import claim_folder, write_yaml
from rlhf.pipeline import memory
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import make_model

machine, inputs = calls.machine, calls.inputs

ROOT = Path(__file__).resolve().parents[3]
SEVEN = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def seven(tmp_path: Path, inputs: list[str]) -> list[str]:
    """Flags that name a model of 6.7B weights in a folder, whose weights are not there, and rows."""
    make_model(tmp_path / "seven")
    (tmp_path / "seven" / "config.json").write_text(json.dumps(SEVEN))
    return ["--actor-model", "seven", *inputs[2:]]


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, gigabytes: float, name: str = "NVIDIA A100-SXM4") -> None:
    """As if this machine had these GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "accelerators", lambda: count)
    monkeypatch.setattr(hardware, "bf16_gpus", lambda: True)
    gpu = nvml.Gpu(0, "GPU-00", name, (8, 0), int(gigabytes * 1e9), 0, {})
    monkeypatch.setattr(nvml, "gpus", lambda: [replace(gpu, index=index) for index in range(count)])


def test_a_plan_for_eight_gpus_needs_neither_them_nor_a_network() -> None:
    """The command of the README, on a laptop in a train."""
    words = ["--actor-model", "opt-13b", "--reward-model", "opt-350m", "--num-gpus", "8", "--gpu-memory", "80"]
    done = run(*words, "--dry-run")
    assert done.exit_code == 0, done.output
    for stage in ("step1_sft", "step2_reward", "step3_ppo"):
        assert f"{stage}: GB on each GPU" in done.stdout
    assert "largest: rollout of step3_ppo, " in done.stdout
    assert done.stdout.rstrip() and "it fits" in done.stdout
    assert "disk: 209.6 GB a checkpoint" in done.stdout
    assert not Path("output").exists()


@pytest.mark.process
def test_the_largest_recipe_is_planned_in_a_gigabyte_and_without_torch() -> None:
    """The address space is limited to 1 GB, in which torch cannot even be loaded."""
    program = (
        "import resource, socket, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
        "socket.socket.connect = None\n"
        "sys.argv = ['train.py', '--recipe', 'opt-66b', '--num-gpus', '8', '--gpu-memory', '80', '--dry-run']\n"
        "import train\n"
        "try:\n"
        "    train.main()\n"
        "finally:\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "it fits" in done.stdout


def test_what_does_not_fit_is_refused_with_the_smallest_change() -> None:
    words = ["--recipe", "opt-13b", "--num-gpus", "8", "--gpu-memory", "40", "--dry-run"]
    done = run(*words)
    assert done.exit_code == 2
    assert "it does not fit" in done.stdout
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"error: step3_ppo needs \d+\.\d GB on each GPU \(rollout\), and a plan may fill 38\.8 of its 40\.0", line
    )
    assert "use --set step3_ppo.offload_optimizer=true (or --fit); --force runs it as it is" in line
    assert run(*words, "--force").exit_code == 0
    assert run(*words, "--set", "step3_ppo.offload_optimizer=true").exit_code == 0


def test_fit_makes_the_change_and_says_so() -> None:
    done = run("--recipe", "opt-13b", "--num-gpus", "8", "--gpu-memory", "40", "--dry-run", "--fit")
    assert done.exit_code == 0, done.output
    assert re.search(r"--fit: step3_ppo needs \d+\.\d GB a GPU; step3_ppo.offload_optimizer=true", done.stdout)
    assert "it fits" in done.stdout


def test_fit_leaves_what_was_typed() -> None:
    """The user has a reason; then another change is found, or none."""
    words = ["--recipe", "opt-13b", "--num-gpus", "8", "--gpu-memory", "40", "--dry-run", "--fit"]
    done = run(*words, "--set", "step3_ppo.offload_optimizer=false")
    assert done.exit_code == 0, done.output
    assert "offload_optimizer=true" not in done.stdout
    assert "lora_rank=64" in done.stdout


def test_fit_continues_the_run_that_it_started(seven: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's settings are those that --fit chose, LoRA among them, which no flag of the command names."""
    with_gpus(monkeypatch, 1, 25.4)
    monkeypatch.setattr("rlhf.pipeline.memory.main_memory", lambda: 32e9)  # too little to offload into
    started: list[Any] = []

    def started_with(plan: Any, **_: Any) -> int:
        started.append(plan)
        claim_folder(plan.pipeline.output_dir)
        for stage in plan.stages:
            claim_folder(stage.config.output_dir)
            write_yaml(stage.config.output_dir / "config.yaml", stage.config.model_dump(mode="json"))
        return 0

    monkeypatch.setattr("rlhf.pipeline.run.run_pipeline", started_with)
    for _ in range(2):
        done = run(*seven, "--fit", "--stages", "1")
        assert done.exit_code == 0, done.output
    assert [stage.config.lora_rank for stage in started[0].stages] == [64]
    assert [s.config for s in started[1].stages] == [s.config for s in started[0].stages]


def test_a_model_that_no_change_makes_fit() -> None:
    done = run("--actor-model", "llama-3.1-70b", "--data-path", "org/rows", "--gpu-memory", "24", "--dry-run", "--fit")
    assert done.exit_code == 2
    assert "no change of its settings is enough; use more or larger GPUs, or a smaller model" in done.stderr


def test_a_run_is_refused_before_it_starts(seven: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU of 24 GB and 6.7B weights: it once loaded for minutes and ran out of memory in the first step."""
    with_gpus(monkeypatch, 1, 25.4)
    done = run(*seven)
    assert done.exit_code == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["step1_sft", "step2_reward", "step3_ppo"]
    assert not Path("out").exists()


def test_a_machine_that_does_not_tell_its_memory_is_not_judged(
    seven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 1, 25.4)
    monkeypatch.setattr(nvml, "gpus", list)
    done = run(*seven, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "fit" not in done.stdout


def test_on_a_cpu_a_plan_far_beyond_main_memory_warns(seven: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(memory, "main_memory", lambda: 16e9)
    monkeypatch.setattr(memory, "warn", shown.append)
    monkeypatch.setattr("rlhf.pipeline.run.run_pipeline", lambda *_, **__: 0)
    assert run(*seven).exit_code == 0
    assert any(
        re.match(r"step3_ppo needs some \d+\.\d GB of main memory, and this machine has 16\.0", s) for s in shown
    )
    shown.clear()
    monkeypatch.setattr(memory, "main_memory", lambda: 900e9)
    assert run(*seven).exit_code == 0
    assert not shown


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gpu-memory", "80"], "--gpu-memory describes a machine that is not this one; add --dry-run"),
        (
            ["--gpu-memory", "80", "--num-gpus", "0", "--dry-run"],
            "--gpu-memory describes GPUs, and --num-gpus 0 wants none",
        ),
        (["--peak-share", "0.4"], "--peak-share is for the time in a plan: it has no effect without --dry-run"),
        (["--gpu-memory", "0", "--dry-run"], "--gpu-memory"),
        (["--peak-share", "40", "--dry-run"], "--peak-share"),
    ],
)
def test_wrong_flags(words: list[str], message: str, inputs: list[str]) -> None:
    done = run(*inputs, *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not Path("out").exists()


def test_a_model_that_is_no_alias_still_has_to_be_there() -> None:
    done = run("--actor-model", "org/none", "--data-path", "org/rows", "--gpu-memory", "80", "--dry-run")
    assert done.exit_code == 2
    assert "org/none cannot be reached" in done.stderr


def test_time_and_price() -> None:
    """OPT-1.3B's stage 1: 10 steps of 32 × 512 tokens, forward and backward, at 30% of 312·10¹²."""
    words = ["--recipe", "opt-1.3b", "--gpu-memory", "80", "--max-steps", "10", "--dry-run"]
    done = run(*words, "--peak-share", "0.3", "--price-per-gpu-hour", "3600")
    assert done.exit_code == 0, done.output
    row = next((line for line in done.stdout.splitlines() if re.match(r"│ step1_sft +│ step", line)), "")
    assert row, done.stdout
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    layers = 24 * 12 * 2048**2  # the products of a layer have 12 D² weights; the head counts 256 tokens a row
    expected = 3 * 32 * (512 * (2 * layers + 4 * 24 * 2048 * 256) + 2 * 50272 * 2048 * 256)
    assert cells[2] == "16,384"
    assert float(cells[3]) * 1e15 == pytest.approx(expected, rel=0.01)
    assert float(cells[4]) == pytest.approx(expected / (0.3 * 312e12), rel=0.01)
    assert cells[5] == "10"
    assert float(cells[7]) == pytest.approx(10 * expected / (0.3 * 312e12), rel=0.01)
    assert "all stages: " in done.stdout
