"""One list of problems: whatever a stage refuses when it starts, the plan has refused before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from rlhf import hardware
from rlhf.config import build_leniently
from rlhf.errors import ConfigError
from rlhf.hardware import Machine
from rlhf.pipeline.plan import make_plan
from rlhf.pipeline.recipes import Request
from rlhf.stages.problems import stage_problems
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import make_model

machine, inputs = calls.machine, calls.inputs
SPECS = {spec.package: spec for spec in train.STAGES}


def model(folder: Path, **config: Any) -> str:
    """A folder that looks like a model with this config.json."""
    make_model(folder)
    value = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048, **config}
    (folder / "config.json").write_text(json.dumps(value))
    return str(folder)


@pytest.mark.parametrize(
    "config, words, message",
    [
        (
            {"model_type": "bloom"},
            ["--set", "step1_sft.packing=true"],
            "step1_sft.packing is not tested with models of type bloom",
        ),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 2},
            ["--set", "step3_ppo.inference_tp_size=4", "--num-gpus", "4"],
            "inference_tp_size=4 does not divide the attention of model (4 heads, 2 key-value heads)",
        ),
        (
            {"model_type": "mamba", "num_attention_heads": 4},
            ["--set", "step3_ppo.inference_tp_size=2", "--num-gpus", "2"],
            "is of type mamba, which has no plan for tensor parallelism; use 1",
        ),
        (
            {"model_type": "rwkv"},
            [],
            "step3_ppo.actor_model: model is of type rwkv, which has no cache that the sampler",
        ),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, [], "--actor-model model: is an encoder"),
        ({"quantization_config": {"quant_method": "fp8"}}, [], "--actor-model model: its weights are quantised (fp8)"),
        (
            {"num_attention_heads": 12},
            ["--set", "step3_ppo.inference_tp_size=3", "--num-gpus", "4"],
            "inference_tp_size=3 does not divide the 4 ranks of a node; try 1, 2, 4",
        ),
        ({}, ["--set", "step3_ppo.inference_dtype=fp16"], "step3_ppo.inference_dtype=fp16 needs a GPU"),
        (
            {"model_type": "opt"},
            ["--set", "step3_ppo.inference_compile=true"],
            "sampling from a model of type opt cannot be compiled, only from llama, mistral, qwen2, qwen3, gemma",
        ),
        (
            {"model_type": "opt"},
            ["--set", "step3_ppo.inference_cuda_graphs=true"],
            "sampling from a model of type opt cannot be captured as graphs, only from llama, mistral, qwen2, qwen3, ",
        ),
        (
            {"model_type": "mistral", "sliding_window": 4096},
            ["--set", "step3_ppo.inference_compile=true"],
            "sampling from a model with windows cannot be compiled, only from llama, mistral, qwen2, qwen3, gemma with",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ["--set", "step3_ppo.inference_compile=true"],
            "sampling from a model with rotary tables of type dynamic cannot be compiled, only from llama, ",
        ),
        ({}, ["--set", "step3_ppo.inference_cuda_graphs=true"], "step3_ppo.inference_cuda_graphs needs a GPU"),
        ({"max_position_embeddings": 500}, [], "but model has 500 positions; lower one of them by 12"),
    ],
)
def test_what_an_earlier_stage_will_make_is_checked_with_the_plan(
    tmp_path: Path, inputs: list[str], config: dict[str, Any], words: list[str], message: str
) -> None:
    """The model of stage 3 does not exist yet; its family, heads and positions are those of the actor's base."""
    (tmp_path / "model" / "config.json").unlink()
    value = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}
    (tmp_path / "model" / "config.json").write_text(json.dumps(value))
    refused = run(*inputs, *words, "--dry-run")
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert not Path("out").exists()


def test_a_reward_model_that_fails_the_gate_is_refused_with_the_plan(tmp_path: Path, inputs: list[str]) -> None:
    held_out = {"reward/accuracy": 0.5, "reward/margin": 0.1}
    held_out |= {"reward/length_correlation": 0.0, "reward/calibration_error": 0.0}
    name = model(tmp_path / "reward", architectures=["LlamaForSequenceClassification"], num_labels=1, held_out=held_out)
    words = [*inputs, "--stages", "1,3", "--reward-model", name, "--dry-run"]
    refused = run(*words)
    assert "accuracy 0.500 on held-out pairs is below 0.55" in refused.stderr
    assert run(*words, "--force").exit_code == 0


def finish(stage: str, config: dict[str, Any]) -> None:
    """A finished stage in out/, whose model has this config.json."""
    folder = Path("out", stage)
    make_model(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(config))
    for name in ("out", f"out/{stage}"):
        Path(name, ".rlhf.lock").touch()
    (folder / "done.json").write_text('{"seconds": 1, "metrics": {}, "models": {}}')


@pytest.mark.parametrize("stages", ["3", "2,3", "1,2,3"])
def test_the_same_command_after_a_failed_gate_is_refused_with_the_plan(inputs: list[str], stages: str) -> None:
    """Stage 2 is finished, so its model is known: what it will be must not be guessed from its input."""
    held_out = {"reward/accuracy": 0.5, "reward/margin": 0.1}
    held_out |= {"reward/length_correlation": 0.0, "reward/calibration_error": 0.0}
    finish("step1_sft", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    reward = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "num_labels": 1}
    finish("step2_reward", {**reward, "held_out": held_out})
    refused = run(*inputs, "--stages", stages, "--dry-run")
    assert "accuracy 0.500 on held-out pairs is below 0.55" in refused.stderr, refused.output
    finish_again = Path("out/step2_reward/model/config.json")
    finish_again.write_text(json.dumps({**reward, "held_out": {"acc": 1}}))  # another tool's
    assert run(*inputs, "--stages", stages, "--dry-run").exit_code == 0


def test_a_named_actor_is_judged_itself_although_stage_1_is_finished(tmp_path: Path, inputs: list[str]) -> None:
    finish("step1_sft", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    reward = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    finish("step2_reward", {**reward, "model_type": "llama"})
    name = model(tmp_path / "scalar", **reward)
    refused = run(*inputs, "--stages", "3", "--sft-model", name, "--dry-run")
    assert refused.stderr == f"error: --sft-model {name}: is a reward model, not a language model\n"


def test_each_thing_is_said_once_and_under_the_flag_that_is_meant(inputs: list[str]) -> None:
    missing = run(*inputs[2:], "--dry-run").stderr.splitlines()
    assert [line for line in missing if "is needed" in line] == [
        "error: --actor-model is needed: a model folder, a hub name or an alias such as opt-1.3b"
    ]
    too_long = run(*inputs, "--max-prompt-length", "9000", "--dry-run").stderr.splitlines()
    assert len(too_long) == 1
    assert "but model has 2048 positions" in too_long[0]
    managed = run(*inputs, "--set", "step3_ppo.actor_model=x", "--dry-run").stderr.splitlines()
    assert len(managed) == 1
    assert "step3_ppo.actor_model is set by train.py" in managed[0]


def test_ranks_are_checked_before_a_preparation_has_run(inputs: list[str]) -> None:
    """The demo would be pretrained for minutes before stage 3 refuses."""
    del inputs
    refused = run("--num-gpus", "2", "--set", "step3_ppo.inference_tp_size=3", "--dry-run")
    assert "inference_tp_size=3 does not divide the 2 ranks of a node; try 1, 2" in refused.stderr


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "packing": st.booleans(),
    "mini_batch_size": st.sampled_from([1, 3, 32]),
    "max_prompt_length": st.sampled_from([16, 4000]),
    "inference_tp_size": st.sampled_from([1, 2, 3, 4]),
    "optimizer": st.sampled_from(["adamw", "adafactor"]),
    "zero_stage": st.sampled_from([None, 0, 3]),
    "actor_zero_stage": st.sampled_from([None, 0, 3]),
    "dtype": st.sampled_from(["auto", "fp16", "bf16"]),
    "lora_alpha": st.sampled_from([32.0, 8.0]),
    "compile": st.booleans(),
    "offload_optimizer": st.booleans(),
    "reuse_forward": st.booleans(),
    "scoring_micro_batch_size": st.sampled_from([None, 2]),
    "ema": st.booleans(),
    "ema_decay": st.sampled_from([0.992, 0.5]),
    "data_path": st.sampled_from([["rows.jsonl"], ["none.jsonl"], ["text.jsonl"]]),
    "trackers": st.sampled_from([[], ["wandb"]]),
    "rollout_batch_size": st.sampled_from([64, 30]),
    "force": st.booleans(),
    "trust_remote_code": st.booleans(),
}
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "model_type": st.sampled_from(["llama", "bloom", "mamba", "opt", "granite", "rwkv", "bert", "t5", "unheard"]),
        "quantization_config": st.sampled_from([None, {"quant_method": "gptq"}]),
        "auto_map": st.sampled_from([{}, {"AutoModelForCausalLM": "own.Model"}]),
        "num_attention_heads": st.sampled_from([4, 12]),
        "num_key_value_heads": st.sampled_from([2, 4]),
        "max_position_embeddings": st.sampled_from([64, 2048]),
        "architectures": st.sampled_from([["LlamaForCausalLM"], ["LlamaForSequenceClassification"]]),
    },
)


@pytest.mark.parametrize("package", list(SPECS))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_stage_finds_the_plan_finds(
    package: str, data: st.DataObject, tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random settings and models: the plan's lines hold every line of the stage's, flags' names aside."""
    spec = SPECS[package]
    Path("text.jsonl").write_text('{"text": "only text"}\n')
    chosen = {n: data.draw(v, label=n) for n, v in VALUES.items() if n in spec.config_class.model_fields}
    names = {}
    for each in spec.inputs:
        kind = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1} if each.kind == "reward" else {}
        folder = tmp_path / each.setting
        if not folder.exists():
            make_model(folder)
        value = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **kind, **data.draw(CONFIGS)}
        (folder / "config.json").write_text(json.dumps(value))
        names[each.setting] = str(folder)
    ranks = data.draw(st.sampled_from([1, 2, 4]))
    config, wrong = build_leniently(spec.config_class, {**chosen, **names}, where=package)
    assert wrong == []
    by_stage = stage_problems(spec, config, Machine(ranks=ranks))

    flags: dict[str, Any] = {"num_gpus": ranks, "stages": str(spec.number), "output_dir": Path("out")}
    if spec.methods:
        flags["method"] = spec.methods[0]
    sets = [f"{package}.{name}={json.dumps(value)}" for name, value in chosen.items()]
    for each in spec.inputs:
        if each.made_as:
            flags[each.flags[0]] = names[each.setting]
        else:
            sets.append(f"{package}.{each.setting}={names[each.setting]}")
    monkeypatch.setattr(hardware, "accelerators", lambda: 0)
    try:
        make_plan(train.STAGES, Request(flags=flags, sets=sets))
        by_plan: list[str] = []
    except ConfigError as error:
        by_plan = error.problems
    for each in spec.inputs:  # the same model under the flag's own name
        for flag in each.flags:
            options = (f"--{flag.replace('_', '-')} ", f"--{each.setting.replace('_', '-')} ")
            by_plan = [line.replace(*options) for line in by_plan]
    assert set(by_stage) <= set(by_plan)


@pytest.mark.parametrize("stages, refused", [("1,2", False), ("1,2,3", True)])
def test_a_family_that_cannot_be_sampled_is_refused_before_stage_1(
    inputs: list[str], stages: str, refused: bool
) -> None:
    """Stages 1 and 2 were paid for before stage 3 crashed; alone they are right."""
    config = {"architectures": ["RwkvForCausalLM"], "model_type": "rwkv"}
    Path("model/config.json").write_text(json.dumps(config))
    assert run(*inputs, "--stages", stages, "--dry-run").exit_code == (2 if refused else 0)


def test_a_finished_stage_is_not_asked_for_its_inputs_again(tmp_path: Path, inputs: list[str]) -> None:
    """Its work is done: a data file that was removed since must not keep the later stages from going on."""
    flags = {"actor_model": "model", "data_path": ["rows.jsonl"], "output_dir": Path("out")}
    spec = SPECS["step1_sft"]
    planned = make_plan(train.STAGES, Request(flags=flags)).stages[0]
    asked: list[str] = []
    told = replace(spec, problems=lambda *_: asked.append("again") or [])
    folder = Path("out/step1_sft")
    folder.mkdir(parents=True)
    for name in ("out", "out/step1_sft"):
        Path(name, ".rlhf.lock").touch()
    (folder / "config.yaml").write_text(json.dumps(planned.config.model_dump(mode="json")))
    (folder / "done.json").write_text('{"seconds": 1, "metrics": {}, "models": {}}')
    assert make_plan([told, *train.STAGES[1:]], Request(flags=flags)).stages[0].finished
    assert asked == []
