"""Rewards of one's own through the plan and stage 3: what they leave out, what reaches them, what is written down."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml

import train
from rlhf.errors import ConfigError, DataError
from rlhf.pipeline.plan import make_plan
from rlhf.pipeline.recipes import Request
from step3_ppo.rollout_view import headline, summary
from step3_ppo.show import load
from tests.helpers import stages
from tests.helpers.ppo import save_reward_model
from tests.helpers.tiny import save_tiny
from tests.rlhf.models.test_classifier import save

CODE = '''
import json, os, signal
from pathlib import Path

def near(prompts, completions, sum, notes, **columns):
    """Text in and out, numbers and lists as they are in the data."""
    assert all(p == f"What is {s - n[0]}+{n[0]}?" for p, s, n in zip(prompts, sum, notes)), (prompts, sum, notes)
    with open(Path(__file__).with_name("calls.jsonl"), "a") as file:
        file.write(json.dumps([prompts, completions, sum]) + "\\n")
    return [float(len(c)) / 10 if s % 2 else None for c, s in zip(completions, sum)]

def short(completions):
    return [-len(c) / 100 for c in completions]

def kills(completions, trainer_state):
    marker = Path(__file__).with_name("marker")
    if trainer_state.global_step == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return [-len(c) / 100 for c in completions]

def wrong(completions, trainer_state):
    return [1.0 if trainer_state.global_step == 0 else "one" for _ in completions]
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def write_sums(path: Path, count: int = 40) -> str:
    """Questions with their sum, a number, and how far the two are apart, in a list."""
    rows = [{"prompt": f"What is {i}+{i % 7}?", "sum": i + i % 7, "notes": [i % 7, None]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ppo(folder: Path, *rewards: str, data: str = "", **changes: Any) -> Path:
    """Stage 3 in this process with these rewards; its folder."""
    actor = folder.parent / "actor"
    if not actor.exists():
        save_tiny(actor)
    data = data or write_sums(folder.parent / "sums.jsonl")
    values = {"reward": list(rewards), "force": False, "save_rollouts_every": 1, "data_split": "0,0,1"} | changes
    stages.ppo(folder, actor, values.pop("reward_model", ""), data, **values)
    return folder


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows]


# --- stage 3 ----------------------------------------------------------------------------------------------------------

in_process = pytest.mark.usefixtures("one_rank")


@in_process
@pytest.mark.process
def test_columns_reach_the_function_and_each_reward_is_written_down(tmp_path: Path, mine: Path) -> None:
    folder = ppo(tmp_path / "out", f"{mine}:near:2", "check:length,max=4", f"{mine}:short:0.5")
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [len(prompts) for prompts, _, _ in calls] == [8, 8]  # once for each iteration, not for each micro-batch
    for number, (row, (prompts, completions, sums)) in enumerate(zip(metrics(folder), calls, strict=True), start=1):
        near = [len(c) / 10 for c, s in zip(completions, sums, strict=True) if s % 2]
        assert row["ppo/reward/near"] == pytest.approx(sum(near) / len(near))
        rollouts = load({number: folder / f"rollouts/iteration-{number:06}.jsonl"}, number).rows
        for at, rollout in enumerate(rollouts):
            assert rollout["prompt"] == [{"role": "user", "content": prompts[at]}]
            found = rollout["rewards"]
            assert (found["near"] is None) == (sums[at] % 2 == 0)
            total = 2 * (found["near"] or 0) + found["length"] + 0.5 * found["short"]
            assert rollout["score"] == pytest.approx(total, abs=1e-4)
            penalty = 0.0 if rollout["stopped"] else 1.0
            assert rollout["final_score"] == pytest.approx(total - penalty, abs=1e-4)
        assert row["ppo/scores_mean"] == pytest.approx(sum(r["score"] for r in rollouts) / 8, abs=1e-4)
        assert summary(rollouts)["mean near"] == pytest.approx(row["ppo/reward/near"], abs=1e-4)
        odd = next(rollout for rollout in rollouts if rollout["rewards"]["near"] is not None)
        assert " · near " in headline(odd)
    held_out = [json.loads(line) for line in (folder / "held_out_prompts.jsonl").read_text().splitlines()]
    assert held_out
    assert all(row["prompt"] == f"What is {row['sum'] - row['notes'][0]}+{row['notes'][0]}?" for row in held_out)


@in_process
@pytest.mark.process
@pytest.mark.slow
def test_the_cut_into_micro_batches_changes_nothing_that_a_function_sees(tmp_path: Path, mine: Path) -> None:
    calls = []
    for size in (2, 8):
        ppo(tmp_path / f"out{size}", f"{mine}:near", f"{mine}:short", micro_batch_size=size, iterations=1)
        calls.append((tmp_path / "calls.jsonl").read_text().splitlines()[-1])
    assert calls[0] == calls[1]


@in_process
@pytest.mark.process
@pytest.mark.slow
def test_models_of_other_tools_score_beside_functions(tmp_path: Path, mine: Path) -> None:
    """An encoder as plain transformers saves it, and a model of stage 2: the first is calibrated once, the second has
    its scale; the critic starts from the actor."""
    foreign, ours = save(tmp_path / "foreign", "bert"), save_reward_model(tmp_path / "ours")
    tokenizer = hf.AutoTokenizer.from_pretrained(ours)
    tokenizer.chat_template = hf.AutoTokenizer.from_pretrained(foreign).chat_template
    tokenizer.save_pretrained(ours)
    folder = ppo(tmp_path / "out", f"model:{foreign}:0.5", f"model:{ours}:2", f"{mine}:short")
    kept = json.loads((folder / "calibration-foreign.json").read_text())
    assert not (folder / "calibration-ours.json").exists()
    rollouts = load({1: folder / "rollouts/iteration-000001.jsonl"}, 1).rows
    for row in rollouts:
        found = row["rewards"]
        normalised = (found["foreign"] - kept["score_mean"]) / kept["score_std"]
        total = 0.5 * max(-5, min(5, normalised)) + 2 * max(-5, min(5, (found["ours"] - 0.25) / 0.5)) + found["short"]
        assert row["score"] == pytest.approx(total, abs=1e-3)
    critic = json.loads((folder / "critic/config.json").read_text())
    assert (critic["score_mean"], critic["score_std"]) == (0.0, 1.0)
    assert all(math.isfinite(row["ppo/reward/foreign"]) for row in metrics(folder))


@in_process
@pytest.mark.process
def test_what_goes_wrong_on_the_way_names_function_and_row(tmp_path: Path, mine: Path) -> None:
    with pytest.raises(DataError) as error:
        ppo(tmp_path / "out", f"{mine}:wrong")
    (line,) = error.value.problems
    assert line.startswith(f"--reward {mine}:wrong: iteration 2, row 1 ('What is ")
    assert line.endswith("it returned 'one', which is not a finite number (or None)")
    assert len(metrics(tmp_path / "out")) == 1


@pytest.mark.process
@pytest.mark.slow
def test_a_run_that_is_killed_in_a_function_loses_nothing(tmp_path: Path, mine: Path) -> None:
    """Killed while the third iteration is scored, it goes on from the checkpoint of the first two: the same prompts,
    responses and scores, bit for bit."""
    save_tiny(tmp_path / "actor")
    write_sums(tmp_path / "sums.jsonl")

    def start(output: str) -> int:
        settings = {
            "actor_model": str(tmp_path / "actor"), "data_path": [str(tmp_path / "sums.jsonl")], "iterations": 4,
            "rollout_batch_size": 4, "mini_batch_size": 4, "max_prompt_length": 40, "max_response_length": 8,
            "data_split": "0,0,1", "save_every": 1, "keep_rollouts": 9, "reward_timeout": 120.0,
            "reward": [f"{mine}:kills", f"{mine}:near"], "output_dir": str(tmp_path / output),
        }  # fmt: skip
        (tmp_path / f"{output}.yaml").write_text(yaml.safe_dump(settings))
        words = [sys.executable, "-m", "step3_ppo", "--config", str(tmp_path / f"{output}.yaml")]
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert start("killed") == -signal.SIGKILL
    assert len(metrics(tmp_path / "killed")) == 2
    assert start("killed") == 0
    assert start("whole") == 0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    for number in range(1, 5):
        name = f"rollouts/iteration-{number:06}.jsonl"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls = (tmp_path / "calls.jsonl").read_text().splitlines()
    assert sorted(set(calls)) == sorted(set(calls[-4:]))  # asked the same, both times
    killed, whole = (hf.AutoModelForCausalLM.from_pretrained(tmp_path / run / "actor") for run in ("killed", "whole"))
    for (name, ours), (_, theirs) in zip(killed.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@in_process
@pytest.mark.process
def test_functions_score_for_an_estimator_without_a_critic(tmp_path: Path, mine: Path) -> None:
    """Then one model and its reference are all that there is."""
    changes = {"advantage_estimator": "rloo", "responses_per_prompt": 2, "iterations": 1}
    folder = ppo(tmp_path / "out", f"{mine}:near", f"{mine}:short", **changes)
    assert "ppo/reward/short" in metrics(folder)[0]
    assert not (folder / "critic").exists()


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan(folder: Path, *rewards: str, **flags: Any) -> Any:
    """The plan of a run in a folder with a tiny model and sums."""
    if not (folder / "model").exists():
        save_tiny(folder / "model")
        rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "solutions": [i]} for i in range(20)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = flags.pop("sets", [])
    values = {
        "actor_model": str(folder / "model"), "data_path": [str(folder / "rows.jsonl")], "output_dir": folder / "out",
        "max_prompt_length": 40, "max_response_length": 16, "reward": list(rewards),
    } | flags  # fmt: skip
    return make_plan(train.STAGES, Request(flags={k: v for k, v in values.items() if v is not None}, sets=sets))


def planned(made: Any) -> list[int]:
    return [stage.spec.number for stage in made.stages]


@pytest.mark.process
def test_stage_2_is_left_out_where_nothing_needs_its_model(tmp_path: Path, mine: Path) -> None:
    made = plan(tmp_path, f"{mine}:short", "check:format:0.5")
    assert planned(made) == [1, 3]
    assert [spec.number for spec in made.left_out] == [2]
    assert made.stages[-1].config.reward_model == ""


@pytest.mark.process
def test_stage_2_runs_where_its_model_scores_or_the_critic_starts_from_it(tmp_path: Path, mine: Path) -> None:
    assert planned(plan(tmp_path)) == [1, 2, 3]
    made = plan(tmp_path, f"{mine}:short", "reward_model:0.5")
    assert planned(made) == [1, 2, 3]
    assert made.stages[-1].config.reward_model == str(tmp_path / "out/step2_reward/model")
    assert planned(plan(tmp_path, "check:format", sets=["step3_ppo.critic_from=reward"])) == [1, 2, 3]
    assert planned(plan(tmp_path, "check:format", stages="1,2,3")) == [1, 2, 3]  # as it was asked


@pytest.mark.process
def test_a_foreign_model_needs_no_stage_2(tmp_path: Path) -> None:
    assert planned(plan(tmp_path, f"model:{save(tmp_path / 'foreign', 'bert')}")) == [1, 3]


@pytest.mark.process
def test_stages_do_not_call_unused_what_a_reward_reads(tmp_path: Path) -> None:
    """`--recipe arithmetic` warned in stage 1 that the column 'solution', of which stage 3 lives, was not used."""
    reads = tmp_path / "reads.py"
    reads.write_text(
        "def one(completions, solutions):\n    return [0.0]\n"
        "def all_of_them(completions, **columns):\n    return one(completions, **columns)\n"
    )

    def told(*rewards: str, **flags: Any) -> list[list[str]]:
        return [stage.config.read_elsewhere for stage in plan(tmp_path, *rewards, **flags).stages]

    assert told(f"{reads}:one", "reward_model") == [["solutions"], ["solutions"], []]
    assert told(f"{reads}:all_of_them") == [["*"], []]
    assert told(f"{reads}:one", sets=["step1_sft.read_elsewhere=[mine]"]) == [["mine"], []]
    assert told() == [[], [], []]


@pytest.mark.process
def test_the_plan_refuses_what_stage_3_would(tmp_path: Path, mine: Path) -> None:
    (tmp_path / "reads.py").write_text("def f(completions, solution):\n    return [0.0]\n")
    two = save(tmp_path / "two", "llama", labels=2)
    rewards = (f"{mine}:shrt", f"{tmp_path / 'reads.py'}:f", f"model:{two}", "check:code", f"{mine}:near:-1")
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, *rewards, reward_model="opt-350m")
    told = error.value.problems
    for words in (
        "has no function 'shrt'; did you mean 'short'?",
        "reads the column 'solution', which the data do not have; did you mean 'solutions'?",
        "is a classifier with 2 labels; a reward model has one output",
        "--run-generated-code",
        "the weight -1 must be 0 or more",
        "--reward-model has no effect: with these settings no stage needs a reward model",
    ):
        assert sum(words in line for line in told) == 1, (words, told)
    assert len(told) == 6
    assert not (tmp_path / "out").exists()


def test_settings_of_rewards_without_effect_are_told(tmp_path: Path) -> None:
    model = save(tmp_path / "foreign", "llama")
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, f"model:{model}", reward_timeout=3.0, run_generated_code=True)
    assert [line.partition(" has no effect")[0] for line in error.value.problems] == [
        "--run-generated-code", "--reward-timeout",
    ]  # fmt: skip
