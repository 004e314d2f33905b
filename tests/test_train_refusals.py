"""train.py: whatever is wrong with its flags or its recipe is said, all at once, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import Result

from rlhf.pipeline.config import PipelineConfig
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import make_model

machine, inputs = calls.machine, calls.inputs


def errors(result: Result) -> list[str]:
    """The error lines; there must be nothing else on stderr, and nothing written."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    assert not Path("out").exists()
    return [line.removeprefix("error: ") for line in lines]


def test_help_is_in_groups_and_names_every_option() -> None:
    text = run("--help").output
    headings = re.findall(r"^(\w[\w ]+):$", text, re.MULTILINE)
    assert headings == ["Models", "Data", "Run", "Training", "Machine", "Other"]
    for name in PipelineConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in text
    for flag in ("--recipe", "--set", "--overwrite", "--dry-run", "--no-ema"):
        assert flag in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["--actor-modl", "x"], "--actor-model"),
        (["--actor-model", "opt-13c"], "opt-13b"),
        (["--actor-model", "no/such/folder"], "--actor-model no/such/folder: no folder no/such/folder"),
        (["--reward-model", "rows.jsonl"], "--reward-model rows.jsonl: rows.jsonl is a file"),
        (["--data-path", "none.jsonl"], "none.jsonl"),
        (["--stages", "4"], "--stages 4: there is no stage 4; the stages are 1, 2, 3"),
        (["--num-gpus", "5"], "--num-gpus 5: no GPU can be used here, and 4 cores can run one CPU rank each"),
        (["--dtype", "fp16"], "step1_sft.dtype=fp16 needs a GPU"),
        (["--dtype", "bf16", "--actor-zero-stage", "0"], "step1_sft.zero_stage=0 with bf16 drifts"),
        (["--set", "step1_sft.optimizer=adafactor"], "adafactor works at ZeRO-0 in fp32 only"),
        (["--set", "step3_ppo.mini_batch_size=6"], "step3_ppo.mini_batch_size=6 does not divide rollout_batch_size=64"),
        (["--set", "step1_sft.mini_batch_size=1", "--num-gpus", "2"], "leaves some of the 2 ranks without a row"),
        (["--advantage-estimator", "rloo"], "responses_per_prompt is 1; use --responses-per-prompt 4"),
        (["--responses-per-prompt", "5"], "step3_ppo.responses_per_prompt=5 does not divide rollout_batch_size=64"),
        (
            ["--advantage-estimator", "grpo", "--responses-per-prompt", "4", "--set", "step3_ppo.mini_batch_size=2"],
            "step3_ppo.mini_batch_size=2 cuts a prompt's responses_per_prompt=4 responses",
        ),
        (["--set", "step1_sft.epcohs=2"], "did you mean 'epochs'?"),
        (["--set", "step3_ppo.actor_model=x"], "is set by train.py; use --sft-model"),
        (["--max-steps", "3", "--set", "step3_ppo.max_steps=4"], "steps 3 and --set step3_ppo.max_steps=4 disagree"),
        (["--set", "step1_sft.data_seed=7"], "all stages must split the data in the same way"),
        (["--recipe", "opt-13"], "no recipe of this name; did you mean 'opt-13b'?"),
        (["--sft-model", "model"], "--sft-model has no effect while stage 1 runs"),
        (["--ptx-coef", "3"], "ptx_coef is set but ptx_data is empty"),
        (["--stages", "3"], "there is no finished one in out/step1_sft; add stage 1 to --stages, or give --sft-model"),
        (["--stages", "3"], "there is no finished one in out/step2_reward; add stage 2 to --stages, or give --reward"),
        (["--stages", "1,3", "--reward-model", "model"], "--reward-model model: has no scalar head"),
        (["--node-rank", "1"], "--node-rank has no effect on one node"),
        (["--num-nodes", "2"], "--num-nodes 2 needs --hostfile"),
        (["--num-nodes", "2", "--node-rank", "2", "--master-addr", "a"], "--node-rank 2 must be 0 to 1"),
        (["--max-prompt-length", "2000"], "lower one of them by 208"),
        (["--output-dir", "rows.jsonl"], "rows.jsonl is a file"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(inputs: list[str], words: list[str], message: str) -> None:
    found = errors(run(*inputs, *words))
    assert any(message in line for line in found), found


def test_all_that_is_wrong_is_said_at_once(inputs: list[str]) -> None:
    """Nobody wants to find five mistakes in five starts of a job that waits in a queue."""
    found = errors(
        run(
            *("--actor-model", "nowhere/model", "--data-path", "none.jsonl", "--output-dir", "out", "--num-gpus", "64"),
            *("--set", "step2_reward.epochs=0", "--set", "step9.x=1", "--recipe", "none", "--seed", "-1"),
            *("--set", "step3_ppo.rollout_batch_size=30"),
        )
    )
    for part in (
        "nowhere/model",
        "none.jsonl",
        "--num-gpus 64",
        "step2_reward.epochs=0",
        "'step9'",
        "--seed -1",
        "=30",
    ):
        assert any(part in line for line in found), (part, found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    "text, message",
    [
        ("step1_sft: {epochs: 2\n", "is not valid YAML at line"),
        ("step1: {epochs: 2}\n", "'step1' is not a section of a recipe; did you mean 'step1_sft'?"),
        ("step1_sft: 3\n", "section 'step1_sft' must hold settings, not 3"),
        ("step1_sft: {epoch: 2}\n", "step1_sft.epoch is not a setting; did you mean 'epochs'?"),
        ("pipeline: {actor_modle: x}\n", "pipeline.actor_modle is not a setting; did you mean 'actor_model'?"),
        ("prepare: {module: no.such.module}\n", "prepare.module='no.such.module': there is no such Python module"),
        ("step2_reward: {output_dir: x}\n", "step2_reward.output_dir is set by train.py; use --output-dir"),
        ("evaluate: {max_promts: 3}\n", "evaluate.max_promts is not a setting; did you mean 'max_prompts'?"),
    ],
)
def test_a_wrong_recipe_is_explained(inputs: list[str], text: str, message: str) -> None:
    Path("mine.yaml").write_text(text)
    found = errors(run(*inputs, "--recipe", "mine.yaml"))
    assert any(message in line for line in found), found


def test_a_reward_model_is_no_actor(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "scalar", scalar_head=True)
    found = errors(run(*inputs, "--actor-model", "scalar"))
    assert "--actor-model scalar: is a reward model, not a language model" in found


def test_a_folder_of_something_else_is_not_touched(inputs: list[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("")
    refused = run(*inputs, "--output-dir", "thesis", "--overwrite")
    assert refused.exit_code == 2
    assert "is not empty and was not written by a run" in refused.stderr
    assert [p.name for p in Path("thesis").iterdir()] == ["chapter.tex"]
