"""`--method dpo`: the stages of a method are planned as the run will have them, and nothing typed for another stays
silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import train
from rlhf.hardware import ONE_RANK
from rlhf.memory.effort import effort
from rlhf.pipeline.plan import Plan, make_plan
from rlhf.pipeline.recipes import Request
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import make_model
from tests.helpers.tiny import save_tiny

machine, inputs = calls.machine, calls.inputs


def plan(**flags: object) -> Plan:
    return make_plan(train.STAGES, Request(flags={"actor_model": "model", "data_path": ["rows.jsonl"], **flags}))


def packages(made: Plan) -> list[str]:
    return [stage.spec.package for stage in made.stages]


def test_dpo_runs_stage_1_and_dpo_and_nothing_else(inputs: list[str]) -> None:
    shown = run(*inputs, "--method", "dpo", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "[2] step2_dpo" in shown.stdout
    assert "model: out/step1_sft/model" in shown.stdout  # what stage 1 will make
    assert "DPO, beta 0.1; log-probabilities summed over tokens" in shown.stdout
    assert "step2_reward" not in shown.stdout
    assert "step3_ppo" not in shown.stdout


def test_without_the_flag_the_stages_are_those_of_ppo(inputs: list[str]) -> None:
    wanted = ["step1_sft", "step2_reward", "step3_ppo"]
    assert packages(plan()) == packages(plan(method="ppo")) == wanted
    assert packages(plan(method="dpo")) == ["step1_sft", "step2_dpo"]


def test_the_plan_knows_the_memory_and_the_steps_of_dpo(inputs: list[str], tmp_path: Path) -> None:
    """One model: the reference is the model itself before training. 2 sequences to a pair, and the shares of stages 2
    and 3: 20 rows, 80% of them, 5% held out."""
    save_tiny(tmp_path / "tiny")
    stage = plan(method="dpo", actor_model="tiny", max_prompt_length=64, max_response_length=48).stages[1]
    workload = stage.spec.workload(stage.config, stage.models, ONE_RANK)
    assert workload is not None
    assert [role.name for role in workload.roles] == ["model"]
    assert workload.rows == 2 * 4  # pairs of a micro-batch
    assert (workload.tokens, workload.counted) == (64 + 48, 48)
    assert workload.steps.count == 1


def test_kto_is_the_same_stage_with_another_loss(inputs: list[str], tmp_path: Path) -> None:
    """One sequence to a row, and a pass without gradients over the mismatched responses of a step."""
    save_tiny(tmp_path / "tiny")
    made = plan(method="kto", actor_model="tiny", max_prompt_length=64, max_response_length=48)
    assert packages(made) == ["step1_sft", "step2_dpo"]
    stage = made.stages[1]
    assert stage.config.loss == "kto"  # type: ignore[attr-defined]
    assert stage.sources["loss"] == "--method"
    assert [output.titled(stage.config.model_dump()) for output in stage.spec.outputs] == ["KTO"]
    workload = stage.spec.workload(stage.config, stage.models, ONE_RANK)
    assert workload is not None
    assert workload.rows == 4
    assert effort(workload, ONE_RANK, None).operations["score"] > 0
    shown = run(*inputs, "--method", "kto", "--dry-run")
    assert "KTO, beta 0.1, weights 1 of good and 1 of bad responses; log-probabilities summed" in shown.stdout


def test_responses_of_one_kind_alone_are_refused_with_the_plan(inputs: list[str]) -> None:
    """What is there is said; a long file, whose later rows are not looked at, may have both kinds."""
    row = {"prompt": "q", "completion": "a", "label": True}
    Path("good.jsonl").write_text("".join(json.dumps({**row, "prompt": f"q{i}"}) + "\n" for i in range(30)))
    words = ["--actor-model", "model", "--output-dir", "out", "--method", "kto", "--dry-run"]
    refused = run(*words, "--data-path", "good.jsonl")
    assert refused.exit_code == 2
    line = "stage 2 needs good and bad responses, by pairs or by a label; all that the sources have are good"
    assert line in refused.stderr
    rows = [json.dumps({**row, "prompt": f"q{i}", "label": i < 2500}) for i in range(3000)]
    Path("sorted.jsonl").write_text("\n".join(rows))
    assert run(*words, "--data-path", "sorted.jsonl").exit_code == 0


def test_a_model_of_stage_1_may_be_brought(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "sft")
    made = make_plan(
        train.STAGES, Request(flags={"method": "dpo", "stages": "2", "sft_model": "sft", "data_path": ["rows.jsonl"]})
    )
    assert packages(made) == ["step2_dpo"]
    assert made.stages[0].config.model == "sft"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ["--method", "dop"],
            "--method dop: there is no such method; did you mean 'dpo'? (the methods are ppo, dpo, kto)",
        ),
        (
            ["--method", "kto", "--set", "step2_dpo.loss=ipo"],
            "--method kto and --set step2_dpo.loss=ipo disagree; drop one of them",
        ),
        (
            ["--method", "kto", "--set", "step2_dpo.label_smoothing=0.1"],
            "step2_dpo.label_smoothing is set but loss is kto: it has no effect; drop one of them",
        ),
        (
            ["--method", "dpo", "--set", "step2_dpo.desirable_weight=2"],
            "step2_dpo.desirable_weight is set but loss is sigmoid: it has no effect; drop one of them",
        ),
        (
            ["--method", "kto", "--set", "step2_dpo.mini_batch_size=1"],
            "step2_dpo.mini_batch_size=1: kto measures each prompt with the response of another row",
        ),
        (["--method", "kto", "--kl-coef", "0.1"], "--kl-coef has no effect with --method kto; leave it out"),
        (["--method", "dpo", "--kl-coef", "0.1"], "--kl-coef has no effect with --method dpo; leave it out"),
        (["--method", "dpo", "--reward-model", "model"], "--reward-model has no effect with --method dpo"),
        (["--method", "dpo", "--critic-zero-stage", "1"], "--critic-zero-stage has no effect with --method dpo"),
        (["--method", "dpo", "--set", "step3_ppo.gamma=0.9"], "step3_ppo is no part of --method dpo; leave it out"),
        (["--set", "step2_dpo.beta=0.3"], "step2_dpo is no part of --method ppo; leave it out"),
        (["--method", "dpo", "--stages", "1,3"], "there is no stage 3; the stages are 1, 2"),
        (["--method", "dpo", "--set", "step2_dpo.beta=0"], "step2_dpo.beta=0"),
        (
            ["--method", "dpo", "--set", "step2_dpo.loss=ipo", "--set", "step2_dpo.label_smoothing=0.1"],
            "step2_dpo.label_smoothing is set but loss is ipo: it has no effect",
        ),
        (
            ["--method", "dpo", "--lora-rank", "4", "--set", "step2_dpo.lora_dropout=0.1"],
            "step2_dpo.lora_dropout is set but the model is compared with its reference",
        ),
        (["--method", "dpo", "--data-split", "1,0,0"], "data_split=1,0,0 leaves stage 2 no rows"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_plan(inputs: list[str], words: list[str], line: str) -> None:
    refused = run(*inputs, *words, "--dry-run")
    assert refused.exit_code == 2
    assert line in refused.stderr
    assert not Path("out").exists()


def test_flags_that_the_method_has_are_taken(inputs: list[str]) -> None:
    """--force also lets a plan pass whose memory is too small, whatever the stages are."""
    words = ["--actor-zero-stage", "0", "--max-steps", "3", "--lora-rank", "2", "--force", "--data-split", "1,1,1"]
    shown = run(*inputs, "--method", "dpo", *words, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "step1_sft.zero_stage, step2_dpo.zero_stage" in shown.stdout


def test_a_recipe_for_both_methods_serves_for_both(inputs: list[str]) -> None:
    Path("mine.yaml").write_text(
        yaml.safe_dump(
            {
                "pipeline": {"kl_coef": 0.2},
                "step2_dpo": {"beta": 0.3, "desirable_weight": 2.0},
                "step3_ppo": {"gamma": 0.9},
            }
        )
    )
    for method, package, setting, value in (
        ("dpo", "step2_dpo", "beta", 0.3),
        ("kto", "step2_dpo", "desirable_weight", 2.0),
        ("kto", "step2_dpo", "loss", "kto"),
        ("dpo", "step2_dpo", "desirable_weight", 1.0),  # not read, so left out
        ("ppo", "step3_ppo", "gamma", 0.9),
    ):
        flags = {"actor_model": "model", "data_path": ["rows.jsonl"], "method": method}
        made = make_plan(train.STAGES, Request(flags=flags, recipe="mine.yaml"))
        assert getattr({s.spec.package: s.config for s in made.stages}[package], setting) == value
