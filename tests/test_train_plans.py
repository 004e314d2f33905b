"""train.py: the plan takes every setting from where it should come, and --dry-run shows it without writing anything."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from rlhf.errors import ConfigError
from rlhf.files import claim_folder
from rlhf.pipeline.plan import left_out_lines, make_plan
from rlhf.pipeline.recipes import Request, choose_recipe
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import make_model

machine, inputs = calls.machine, calls.inputs


def plan(*words: str, prepared: dict[str, object] | None = None) -> object:
    """The plan that flags of PipelineConfig, --set and --recipe make."""
    flags: dict[str, object] = {}
    sets, recipe = [], None
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "--set":
            sets.append(value)
        elif flag == "--recipe":
            recipe = value
        else:
            flags[flag[2:].replace("-", "_")] = (
                [value] if flag in ("--data-path", "--reward") else yaml.safe_load(value)
            )
    request = Request(flags=flags, sets=sets, recipe=recipe)
    specs = [replace(spec, problems=lambda *_: []) for spec in train.STAGES]  # what is named need not be there
    return make_plan(specs, request, prepared=prepared)


def settings(made: object) -> dict[str, object]:
    return {stage.spec.package: stage.config for stage in made.stages}  # type: ignore[attr-defined]


def test_precedence(inputs: list[str]) -> None:
    """default < recipe's pipeline < recipe's stage < flag < --set."""
    Path("mine.yaml").write_text(
        "pipeline: {max_steps: 10, lora_rank: 4, kl_coef: 0.1}\n"
        "step2_reward: {max_steps: 20}\nstep3_ppo: {max_steps: 30}\n"
    )
    made = settings(plan(*inputs, "--recipe", "mine.yaml", "--lora-rank", "8", "--set", "step3_ppo.lora_rank=8"))
    assert [c.max_steps for c in made.values()] == [10, 20, 30]  # type: ignore[attr-defined]
    assert [c.lora_rank for c in made.values()] == [8, 8, 8]  # type: ignore[attr-defined]
    assert made["step3_ppo"].kl_coef == 0.1  # type: ignore[attr-defined]
    assert made["step3_ppo"].gamma == 1.0  # type: ignore[attr-defined]
    made = settings(plan(*inputs, "--recipe", "mine.yaml", "--max-steps", "40"))
    assert [c.max_steps for c in made.values()] == [40, 40, 40]  # type: ignore[attr-defined]
    made = settings(plan(*inputs, "--recipe", "mine.yaml", "--set", "step3_ppo.max_steps=50"))
    assert [c.max_steps for c in made.values()] == [10, 20, 50]  # type: ignore[attr-defined]


def test_stages_are_handed_their_models(inputs: list[str]) -> None:
    made = settings(plan(*inputs))
    assert made["step1_sft"].model == made["step2_reward"].model == "model"  # type: ignore[attr-defined]
    assert made["step3_ppo"].actor_model == "out/step1_sft/model"  # type: ignore[attr-defined]
    assert made["step3_ppo"].reward_model == "out/step2_reward/model"  # type: ignore[attr-defined]


def test_stage_3_alone_takes_models_that_are_named(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "sft")
    make_model(tmp_path / "reward", scalar_head=True)
    made = settings(plan(*inputs[2:], "--stages", "3", "--sft-model", "sft", "--reward-model", "reward"))
    assert list(made) == ["step3_ppo"]
    assert (made["step3_ppo"].actor_model, made["step3_ppo"].reward_model) == ("sft", "reward")  # type: ignore[attr-defined]


def test_stage_3_alone_is_told_how_to_start_from_a_model_that_answers(inputs: list[str]) -> None:
    """The most common GRPO run: an instruct model and a checker. --actor-model is a pretrained one, for stage 1."""
    with pytest.raises(ConfigError) as error:
        plan(*inputs, "--stages", "3", "--reward", "check:length,max=9", "--advantage-estimator", "reinforce_pp")
    assert [line for line in error.value.problems if "needs an actor" in line] == [
        "stage 3 needs an actor, and there is no finished one in out/step1_sft; add stage 1 to --stages, or give "
        "--sft-model a trained one, as --sft-model model if that answers already"
    ]


def test_stage_3_alone_compares_its_actor_with_the_model_that_it_started_from(inputs: list[str]) -> None:
    """The evaluation had the trained actor alone, so nobody saw what it had learned."""
    words = ("--stages", "3", "--sft-model", "model", "--reward", "check:length,max=9")
    made: Any = plan(*inputs[2:], *words, "--advantage-estimator", "reinforce_pp")
    assert made.base_model == "model"
    assert left_out_lines(made) == [
        "60% of the prompts are kept for stages 1 and 2, which the run does not have; --data-split 0,0,4 uses them too"
    ]
    made = plan(*inputs[2:], *words, "--advantage-estimator", "reinforce_pp", "--data-split", "0,0,1")
    assert left_out_lines(made) == []


def test_stage_3_alone_takes_finished_stages_of_the_folder(inputs: list[str]) -> None:
    """The same flags as before and --stages 3: the reward model's base is then not taken for a trained one."""
    for stage in ("step1_sft", "step2_reward"):
        claim_folder(Path("out") / stage)
        Path("out", stage, "done.json").write_text('{"seconds": 1, "metrics": {}, "models": {}}')
    Path("out/.rlhf.lock").touch()
    made = settings(plan(*inputs, "--reward-model", "model", "--stages", "3"))
    assert made["step3_ppo"].reward_model == "out/step2_reward/model"  # type: ignore[attr-defined]


def test_what_a_preparation_brings_gives_way_to_flags(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "made")
    Path("mine.yaml").write_text("prepare: {module: json}\n")
    prepared: dict[str, object] = {"actor_model": "made", "data_path": ["made.jsonl"]}
    made = settings(plan("--recipe", "mine.yaml"))  # before it has run, nothing is missed
    made = settings(plan("--recipe", "mine.yaml", prepared=prepared))
    assert made["step1_sft"].model == "made"  # type: ignore[attr-defined]
    assert made["step3_ppo"].data_path == ["made.jsonl"]  # type: ignore[attr-defined]
    made = settings(plan(*inputs, "--recipe", "mine.yaml", prepared=prepared))
    assert made["step1_sft"].model == "model"  # type: ignore[attr-defined]


def test_a_resumed_run_is_planned_with_what_its_preparation_brought(tmp_path: Path) -> None:
    """The finished stage 1 was trained from the prepared model: planned without it, it looked like another run's."""
    make_model(tmp_path / "made")
    Path("mine.yaml").write_text("prepare: {module: json, size: 3}\n")
    prepared: dict[str, object] = {"actor_model": "made", "data_path": ["made.jsonl"]}
    first = settings(plan("--recipe", "mine.yaml", "--output-dir", "out", prepared=prepared))
    for folder, name, value in (
        ("out/prepare", "done.json", {"settings": {"module": "json", "size": 3}, "values": prepared}),
        ("out/step1_sft", "done.json", {"seconds": 1, "metrics": {}, "models": {}}),
        ("out/step1_sft", "config.yaml", first["step1_sft"].model_dump(mode="json")),  # type: ignore[attr-defined]
    ):
        claim_folder(Path(folder))
        Path(folder, name).write_text(json.dumps(value))
    Path("out/.rlhf.lock").touch()
    again = plan("--recipe", "mine.yaml", "--output-dir", "out")
    assert [stage.finished for stage in again.stages] == [True, False, False]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"prepared with other settings \(module: json, size: 3; now .*size: 4\)"):
        plan("--recipe", "mine.yaml", "--output-dir", "out", "--set", "prepare.size=4")


def test_the_recipe_of_a_known_actor_is_taken_aloud(inputs: list[str]) -> None:
    """Also when the plan fails: its problems may come from a recipe that nobody asked for."""
    name, why = choose_recipe(Request(flags={"actor_model": "OPT-13B"}))
    assert name == "opt-13b"
    assert "--recipe none" in why
    failed = run("--actor-model", "opt-13b", "--num-gpus", "99")
    assert failed.exit_code == 2
    assert why in failed.stdout
    assert choose_recipe(Request(flags={"actor_model": "opt-13b"}, recipe="none")) == (None, "")
    assert choose_recipe(Request(flags={"actor_model": "model"})) == (None, "")


def test_without_models_and_data_it_is_the_demo_and_a_resumed_run_knows_its_recipe(tmp_path: Path) -> None:
    assert choose_recipe(Request(flags={"num_gpus": 2}))[0] == "demo"
    assert choose_recipe(Request(flags={"data_path": ["x.jsonl"]}))[0] is None
    Path("out").mkdir()
    Path("out/pipeline.yaml").write_text("run: {recipe: opt-1.3b}\n")
    assert choose_recipe(Request(flags={"output_dir": Path("out")}))[0] == "opt-1.3b"
    assert choose_recipe(Request(flags={"output_dir": Path("out")}, overwrite=True))[0] == "demo"


def test_a_dry_run_prints_the_plan_and_writes_nothing(inputs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shown = run(*inputs, "--num-gpus", "2", "--max-steps", "7", "--set", "step3_ppo.kl_coef=0.1", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert "2 CPU ranks, 2 threads each" in shown.stdout
    assert "2 × python -m step1_sft --config out/step1_sft/config.yaml" in shown.stdout
    assert "mini_batch_size 32 = 2 ranks × 4 micro-batches × 4 rows" in shown.stdout
    assert "dtype: fp32, ZeRO 1" in shown.stdout
    assert "rollout_batch_size 64 = 64 prompts × 1 response; 1 step of mini_batch_size 64 = 2 ranks ×" in shown.stdout
    assert re.search(r"kl_coef\W+3\W+0\.1\W+--set", shown.stdout)
    assert re.search(r"max_steps\W+1 2 3\W+7\W+flag", shown.stdout)
    assert re.search(r"--max-steps\W+7\W+flag", shown.stdout)
    assert not Path("out").exists()


def test_an_estimator_without_a_critic_is_told_by_the_plan(inputs: list[str]) -> None:
    flags = ["--advantage-estimator", "rloo", "--responses-per-prompt", "4", "--num-gpus", "1"]
    shown = run(*inputs, *flags, "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert "rollout_batch_size 64 = 16 prompts × 4 responses" in shown.stdout
    assert (
        "RLOO (rloo, 4 responses to a prompt), no critic; KL in the reward; ratio of each sequence; loss over sequences"
        in shown.stdout
    )
    assert "ZeRO actor 1, reference 0, reward model 0" in shown.stdout
    assert (
        "PPO (gae), a critic; KL in the reward; ratio of each token; loss over tokens"
        in run(*inputs, "--dry-run").stdout
    )


def test_a_recipes_settings_of_the_critic_give_way_to_a_typed_estimator(inputs: list[str]) -> None:
    """A recipe for PPO has a learning rate of the critic; with --advantage-estimator rloo it was refused for that."""
    Path("mine.yaml").write_text("step3_ppo: {critic_learning_rate: 1.0e-3, gae_lambda: 0.9, kl_coef: 0.1}\n")
    flags = ["--recipe", "mine.yaml", "--advantage-estimator", "grpo", "--responses-per-prompt", "4"]
    config = settings(plan(*inputs, *flags))["step3_ppo"]
    assert (config.critic_learning_rate, config.gae_lambda, config.kl_coef) == (5e-6, 0.95, 0.1)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"step3_ppo\.gae_lambda is set but advantage_estimator is grpo"):
        plan(*inputs, *flags, "--set", "step3_ppo.gae_lambda=0.8")
    Path("mine.yaml").write_text("step3_ppo: {advantage_estimator: reinforce_pp, gae_lambda: 0.9}\n")
    with pytest.raises(ConfigError, match=r"step3_ppo\.gae_lambda is set but"):  # the recipe is at odds with itself
        plan(*inputs, "--recipe", "mine.yaml")
