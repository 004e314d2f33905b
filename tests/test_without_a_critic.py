"""Whole runs of stage 3 by estimators without a critic: what they leave, and that nothing of a critic is in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import step3_ppo.rollout
from rlhf.metrics import read_metrics
from rlhf.report.page import render
from rlhf.stages.result import StageResult
from step3_ppo.config import PPOConfig
from step3_ppo.rollout_files import read_rollouts
from step3_ppo.show import main as show
from tests.helpers import engines, ppo, stages
from tests.helpers.calls import run as call
from tests.helpers.ppo import SCORE_MEAN, SCORE_STD
from tests.helpers.tiny import save_tiny

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.slow]
NAMES = ("rloo", "grpo", "dr_grpo", "reinforce_pp")
OF_A_CRITIC = ("critic", "explained_variance", "values_mean", "returns_mean")
Folders = dict[str, str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "actor": str(save_tiny(folder / "base")),
        "reward": str(ppo.save_reward_model(folder / "reward")),
        "pairs": stages.write_pairs(folder / "pairs.jsonl"),
    }


def run(output: Path, inputs: Folders, name: str, **changes: Any) -> StageResult:
    values = {"advantage_estimator": name, "responses_per_prompt": 4, "save_rollouts_every": 1, "kl_coef": 0.2}
    return stages.ppo(output, inputs["actor"], inputs["reward"], inputs["pairs"], **(values | changes))


@pytest.fixture(scope="module", params=NAMES)
def finished(request: pytest.FixtureRequest, inputs: Folders, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run") / "step3_ppo"
    return request.param, folder, run(folder, inputs, request.param, iterations=3)


def test_no_critic_is_exported_kept_or_reported(finished: tuple[str, Path, StageResult]) -> None:
    name, folder, result = finished
    assert result.models.keys() == {"actor", "actor_ema"}
    assert not (folder / "critic").exists()
    assert [str(path) for path in (folder / "checkpoints").rglob("*") if "critic" in path.name] == []
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) == 3
    for row in rows:
        assert [metric for metric in row if any(part in metric for part in OF_A_CRITIC)] == []
        assert ("ppo/kl_loss" in row) == (name in ("grpo", "dr_grpo"))
        assert ("ppo/uniform_groups" in row) == (name != "reinforce_pp")
        assert row["ppo/skipped_steps"] == 0
    assert "ppo/explained_variance" not in result.metrics
    assert abs(rows[-1]["ppo/kl"]) > 1e-4  # the actor has moved
    page = render(folder.parent)
    assert "Explained variance" not in page
    assert "Critic loss" not in page
    assert "Actor loss" in page


def test_the_loop_estimates_what_the_rollouts_on_disk_give(finished: tuple[str, Path, StageResult]) -> None:
    """Advantages worked out in plain Python from the scores and KL of the third rollout, four rows a prompt."""
    name, folder, _ = finished
    rows = read_rollouts(folder / "rollouts" / "iteration-000003.jsonl")
    assert len(rows) == 8
    assert all("value" not in row for row in rows)
    in_rewards = 0.2 if name in ("rloo", "reinforce_pp") else 0.0
    wanted: list[list[float]] = []
    if name == "reinforce_pp":
        returns = [[r["final_score"] - 0.2 * sum(r["kl"][t:]) for t in range(len(r["kl"]))] for r in rows]
        flat = torch.tensor([value for row in returns for value in row])
        wanted = [((torch.tensor(row) - flat.mean()) / flat.std(unbiased=False)).tolist() for row in returns]
    else:
        for at in (0, 4):
            group = rows[at : at + 4]
            assert len({json.dumps(row["prompt"]) for row in group}) == 1
            of_group = torch.tensor([row["final_score"] - in_rewards * sum(row["kl"]) for row in group])
            centred = of_group - of_group.mean()
            factor = {"rloo": 4 / 3, "grpo": 1 / (float(of_group.std()) + 1e-4), "dr_grpo": 1.0}[name]
            wanted += [[a] * len(row["kl"]) for a, row in zip((factor * centred).tolist(), group, strict=True)]
    for row, advantages in zip(rows, wanted, strict=True):
        score = min(max((row["score"] - SCORE_MEAN) / SCORE_STD, -5.0), 5.0) - (0.0 if row["stopped"] else 1.0)
        assert row["final_score"] == pytest.approx(score, abs=1e-4)
        assert row["advantage"] == pytest.approx(advantages, abs=2e-3)


def test_the_viewer_shows_a_rollout_without_values(finished: tuple[str, Path, StageResult]) -> None:
    _, folder, _ = finished
    found = call(str(folder), "--rows", "1", "--colour", "advantage", command=show)
    assert found.exit_code == 0
    assert "most advantage" in found.output
    refused = call(str(folder), "--colour", "value", command=show)
    assert refused.exit_code == 2
    assert "--colour value: this run has no critic; use kl or advantage" in refused.output


def _fixed(output: Path, inputs: Folders, name: str, **changes: Any) -> None:
    """A run that learns from responses that are the same on any number of ranks."""
    with mock.patch.object(step3_ppo.rollout, "roll_out", ppo.fixed_rollout):
        run(output, inputs, name, iterations=2, ppo_epochs=2, **changes)


def _two_ranks(output: Path, inputs: Folders) -> None:
    for name in NAMES:
        _fixed(output / name, inputs, name, micro_batch_size=1, actor_zero_stage=2)


def test_two_ranks_and_other_micro_batches_leave_what_one_rank_leaves(
    run_ranks: Callable[..., list[Any]], inputs: Folders, tmp_path: Path
) -> None:
    run_ranks(_two_ranks, tmp_path / "two", inputs, timeout=300)
    for name in NAMES:
        _fixed(tmp_path / "one" / name, inputs, name)
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        for model in ("actor", "actor_ema"):
            weights = [load_file(folder / model / "model.safetensors") for folder in (one, two)]
            assert engines.furthest(*weights) < 2e-5, name
        for left, right in zip(*(read_metrics(f / "metrics.jsonl") for f in (one, two)), strict=True):
            for metric, value in left.items():
                if not metric.startswith(("time/", "perf/")):
                    assert value == pytest.approx(right[metric], rel=2e-3, abs=2e-5), f"{name}: {metric}"


def test_with_adapters_there_is_one_model_beside_the_reward_model(inputs: Folders) -> None:
    """The reference is the actor with its adapters off, and there is no critic: the least that RL needs."""
    models = {"actor_model": inputs["actor"], "reward_model": inputs["reward"]}
    settings = ppo.config(models, advantage_estimator="rloo", responses_per_prompt=2, lora_rank=4)
    roles = ppo.roles(settings)
    assert roles.critic is None
    assert roles.actor.reference is None
    assert list(roles.engines) == ["actor"]


def test_everything_else_goes_on_as_with_a_critic(inputs: Folders, tmp_path: Path) -> None:
    """Adaptive KL in the loss, mix, entropy, early stop, two epochs, and a run in which every group is left out."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Sentence {i} of plain text. " * 3}) + "\n" for i in range(12)))
    options: dict[str, Any] = {
        "ppo_epochs": 2, "adaptive_kl_target": 1.0, "adaptive_kl_horizon": 100, "entropy_coef": 0.01,
        "early_stop_kl": 10.0, "ptx_data": [str(text)], "ptx_length": 32, "iterations": 2, "cliprange_high": 0.28,
    }  # fmt: skip
    run(tmp_path / "a", inputs, "grpo", **options)
    rows = read_metrics(tmp_path / "a/metrics.jsonl")
    assert rows[1]["ppo/kl_coef"] == pytest.approx(0.2 * 0.984)  # 1 − 0.2 · 8 / 100
    assert rows[1]["ppo/ptx_loss"] > 0
    # scores clipped to almost nothing are all alike
    nothing = {"score_clip": 1e-9, "missing_eos_penalty": 0.0, "drop_uniform_groups": True}
    result = run(tmp_path / "b", inputs, "grpo", **(options | nothing))
    rows = read_metrics(tmp_path / "b/metrics.jsonl")
    assert [row["ppo/uniform_groups"] for row in rows] == [2.0, 2.0]
    assert "ppo/actor_loss" not in rows[0]
    assert result.metrics["ppo/skipped_steps"] == 0
    before = load_file(Path(inputs["actor"]) / "model.safetensors")
    assert engines.furthest(load_file(tmp_path / "b/actor/model.safetensors"), before) == 0.0


def test_settings_of_a_run_before_the_estimators_are_those_of_gae() -> None:
    """A folder's config.yaml of an earlier version names none, and the run must go on as it began."""
    assert PPOConfig().advantage_estimator == "gae"
    assert PPOConfig().objective == PPOConfig(kl_in="reward", loss_mean="token", ratio="token").objective
