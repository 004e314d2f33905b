"""Whole stages on a GPU, real or pretended: they leave what a CPU leaves, at every ZeRO stage and on two ranks."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from rlhf.evaluate.evaluation import EvaluateConfig, evaluate
from rlhf.generation.drawing import Sampling
from rlhf.generation.speaker import load_speaker
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.training import distributed
from step3_ppo.hybrid.engine import inference_dtype_of
from tests.helpers import stages
from tests.helpers.gpu import is_real, run_program
from tests.helpers.ranks import RanksFailed
from tests.pretend import card

pytestmark = pytest.mark.slow
Folders = dict[str, Path]
OnGPU = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stages.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def on_cpu(one_rank: None, inputs: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages in fp32 on one rank of this process."""
    output = tmp_path_factory.mktemp("cpu")
    stages.all_stages(output, inputs, 1, dtype="fp32")
    return output


# --- the three stages -------------------------------------------------------------------------------------------------

# ZeRO stage, settings of all stages, settings of stage 3
Run = tuple[int, dict[str, Any], dict[str, Any]]
ALONE: list[Run] = [
    (0, {"activation_checkpointing": True}, {}),
    (2, {"offload_optimizer": True}, {"inference_copy": "on"}),
]
IN_TWO: list[Run] = [
    (1, {}, {}),
    (2, {}, {"reuse_forward": True}),
    (3, {}, {"inference_tp_size": 2}),
]


def _all_stages(output: Path, inputs: Folders, runs: list[Run]) -> str:
    for zero_stage, changes, of_ppo in runs:
        stages.all_stages(output / f"zero{zero_stage}", inputs, zero_stage, of_ppo=of_ppo, dtype="fp32", **changes)
    return str(distributed.device())


@pytest.mark.parametrize("world_size, runs", [(1, ALONE), (2, IN_TWO)], ids=["one rank", "two ranks"])
def test_a_gpu_leaves_what_a_cpu_leaves(
    world_size: int,
    runs: list[Run],
    run_on_gpu: OnGPU,
    on_cpu: Path,
    inputs: Folders,
    tmp_path: Path,
) -> None:
    """Every export and every figure; offload, checkpointing, a copy cut over two ranks and a reused forward on the
    way. Tensors of two devices in one operation, or a tensor of the CPU in a collective, would end the run."""
    devices = run_on_gpu(_all_stages, tmp_path, inputs, runs, world_size=world_size)
    assert all(device.startswith("cuda") for device in devices)
    for zero_stage, _, _ in runs:
        stages.assert_same_run(tmp_path / f"zero{zero_stage}", on_cpu)


def _large_models_settings(output: Path, inputs: Folders) -> list[dict[str, Any]]:
    stages.ppo(
        output, inputs["base"], inputs["reward"], str(inputs["pairs"]), dtype="bf16", lora_rank=2,
        lora_learning_rate=0.02, inference_dtype="auto", inference_tp_size=2,
        **{f"{role}_zero_stage": 3 for role in ("actor", "critic", "reference", "reward")},
    )  # fmt: skip
    return read_metrics(output / "metrics.jsonl")


def test_adapters_in_bf16_at_zero_3_cut_over_two_ranks(run_on_gpu: OnGPU, inputs: Folders, tmp_path: Path) -> None:
    """What the largest recipes use."""
    rows = run_on_gpu(_large_models_settings, tmp_path, inputs, world_size=2)[0]
    assert abs(rows[0]["ppo/kl_k1"]) < 2e-2  # the actor still is the reference
    assert rows[-1]["ppo/kl"] != 0.0
    for folder in ("actor", "actor_ema", "critic"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == "bfloat16"


def _in_fp16(output: Path, inputs: Folders) -> dict[str, Any]:
    stages.sft(output, inputs["base"], str(inputs["pairs"]), dtype="fp16", zero_stage=2, max_steps=4)
    return read_metrics(output / "metrics.jsonl")[-1]


def test_fp16_trains_on_a_gpu(run_on_gpu: OnGPU, inputs: Folders, tmp_path: Path) -> None:
    """It is refused on a CPU, so no other test runs it."""
    (last,) = run_on_gpu(_in_fp16, tmp_path, inputs)
    assert math.isfinite(last["sft/loss"]) and math.isfinite(last["sft/perplexity"])


# --- going on ---------------------------------------------------------------------------------------------------------

STEPS, DIES_AFTER = 3, 2


class _Killed(BaseException):
    """Stands for a power cut."""


def _twice(output: Path, run: Callable[[Path], Any]) -> None:
    """Uninterrupted into output/whole; into output/cut until it dies, and again from its checkpoint."""
    log = MetricsLog.log

    def dying(self: MetricsLog, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        if step == DIES_AFTER:
            raise _Killed

    run(output / "whole")
    with contextlib.suppress(_Killed), mock.patch.object(MetricsLog, "log", dying):
        run(output / "cut")
    run(output / "cut")


def _resume(output: Path, inputs: Folders, runs: list[tuple[int, str]]) -> None:
    pairs = str(inputs["pairs"])
    for zero_stage, stage in runs:
        common: dict[str, Any] = {"dtype": "bf16" if zero_stage else "fp32", "save_every": 1}
        if stage == "ppo":
            zero = {f"{role}_zero_stage": zero_stage for role in ("actor", "critic")}
            models = inputs["base"], inputs["reward"]
            run = partial(stages.ppo, actor=models[0], reward_model=models[1], iterations=STEPS, **common, **zero)
        else:
            run = partial(stages.sft, model=inputs["base"], max_steps=STEPS, zero_stage=zero_stage, **common)
        _twice(output / str(zero_stage), partial(run, pairs=pairs))


@pytest.mark.parametrize(
    "world_size, runs", [(1, [(0, "sft"), (2, "ppo")]), (2, [(1, "sft"), (3, "sft")])], ids=["one rank", "two ranks"]
)
def test_a_run_goes_on_on_a_gpu(
    world_size: int, runs: list[tuple[int, str]], run_on_gpu: OnGPU, inputs: Folders, tmp_path: Path
) -> None:
    """Every resume on a GPU ended at its first optimiser step: the fused AdamW wants its step count on the device."""
    run_on_gpu(_resume, tmp_path, inputs, runs, world_size=world_size)
    for zero_stage, _ in runs:
        whole, cut = (read_metrics(tmp_path / str(zero_stage) / run / "metrics.jsonl") for run in ("whole", "cut"))
        assert len(whole) >= STEPS
        for left, right in zip(whole, cut, strict=True):
            for name, value in left.items():
                if not name.startswith(("time/", "perf/")):
                    # the kernels of a real one add in any order
                    assert right[name] == (pytest.approx(value, rel=1e-2, abs=1e-3) if is_real() else value), name


# --- chat and evaluation ----------------------------------------------------------------------------------------------


def _talk(folder: Path, inputs: Folders) -> tuple[list[int], dict[str, Any]]:
    speaker = load_speaker(str(inputs["base"]), label="tiny", dtype="fp32")
    prompt = speaker.template.prompt_ids([{"role": "user", "content": "hello"}])
    said = list(speaker.sampler.stream(prompt, Sampling(max_new_tokens=12, temperature=0)))
    folder.mkdir()
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(3)))
    config = EvaluateConfig(
        model=[f"tiny={inputs['base']}"], prompts=prompts, dtype="fp32", reward_model=str(inputs["reward"]),
        max_new_tokens=8,
    )  # fmt: skip
    (answered,) = evaluate(config)["models"]
    return said, answered["reward_model"]


def test_chat_and_evaluation_say_on_a_gpu_what_they_say_on_a_cpu(
    run_on_gpu: OnGPU, one_rank: None, inputs: Folders, tmp_path: Path
) -> None:
    ((said, scored),) = run_on_gpu(_talk, tmp_path / "gpu", inputs)
    there, wanted = _talk(tmp_path / "cpu", inputs)
    assert said == there
    assert scored["mean"] == pytest.approx(wanted["mean"], abs=1e-4)


# --- the tests of what holds tensors ----------------------------------------------------------------------------------


HOLD_TENSORS = (
    "rlhf/models/test_reward_model.py",
    "rlhf/training/test_engine_state.py",
    "step3_ppo/test_experience.py",
)


@pytest.mark.process
@pytest.mark.gpu
@pytest.mark.skipif(is_real(), reason="a real GPU runs them itself")
def test_what_holds_tensors_keeps_its_promises_on_a_gpu() -> None:
    """Some of the quick tests that are marked `gpu`, in one process."""
    words = ["-m", "pytest", "-q", "-m", "gpu and not ranks and not process and not slow"]
    done = run_program(*words, *(f"tests/{file}" for file in HOLD_TENSORS), more={"PRETEND_GPU": "1"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 20


# --- a GPU that cannot, or that torch cannot use ----------------------------------------------------------------------


def _dtypes(model: Path) -> list[str]:
    speaker = load_speaker(str(model), label="tiny")
    return [str(dtype) for dtype in (speaker.sampler.lm.dtype, inference_dtype_of("auto", torch.float32))]


@pytest.mark.parametrize("which, dtype", [(card.A100, "torch.bfloat16"), (card.T4, "torch.float32")])
def test_bf16_only_where_it_is_multiplied_in_hardware(
    which: card.Card, dtype: str, run_on_gpu: OnGPU, inputs: Folders
) -> None:
    """A T4 emulates bf16, ten times as slow as fp32, and "auto" chose it: torch says that it is supported."""
    assert run_on_gpu(_dtypes, inputs["base"], which=which) == [[dtype, dtype]]


@pytest.mark.process
@pytest.mark.gpu
def test_train_py_plans_for_a_gpu_and_runs_on_it(inputs: Folders, tmp_path: Path) -> None:
    """In bf16 and at ZeRO-2, which are the defaults there."""
    done = run_program(
        "train.py", "--actor-model", str(inputs["base"]), "--data-path", str(inputs["pairs"]), "--stages", "1",
        "--output-dir", str(tmp_path / "out"), "--num-gpus", "1", "--max-prompt-length", "40",
        "--max-response-length", "16", "--max-steps", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1/1\] step1_sft: .*1 GPU", done.stdout)
    saved = json.loads((tmp_path / "out/step1_sft/model/config.json").read_text())
    assert saved["dtype"] == "bfloat16"


def test_a_gpu_that_torch_cannot_use_ends_a_rank(run_on_gpu: OnGPU) -> None:
    """The plan said "1 GPU", and the run went on the CPU without a word."""
    with pytest.raises(RanksFailed) as told:
        run_on_gpu(distributed.device, which=card.TOO_NEW)
    assert "ConfigError: 1 GPU(s) are visible" in str(told.value) and card.TOO_OLD_DRIVER in str(told.value)
