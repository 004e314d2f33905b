"""The whole pipeline, killed within each of its stages and started again by the same command, as people do."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import step1_sft.main
import step2_reward.main
import step3_ppo.main
from rlhf.errors import EXIT_DONE, EXIT_TERMINATED
from rlhf.stages.result import CONFIG_NAME, DONE_NAME
from scripts.nightly_kill import after_step, differences, last_step, train
from step1_sft.config import SFTConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig
from tests.helpers import stages
from tests.helpers.tiny import save_tiny

pytestmark = [pytest.mark.process, pytest.mark.slow]

RECIPE: dict[str, Any] = {
    "pipeline": {"data_split": "1,1,1", "max_prompt_length": 40, "max_response_length": 12, "micro_batch_size": 2},
    "step1_sft": {"mini_batch_size": 4, "epochs": 12, "save_every": 4, "max_steps": 40},
    "step2_reward": {"mini_batch_size": 4, "epochs": 12, "save_every": 4, "max_steps": 40},
    "step3_ppo": {
        "rollout_batch_size": 4, "mini_batch_size": 4, "save_every": 4, "iterations": 26, "force": True,
        "ema_decay": 0.9, "adaptive_kl_target": 0.5, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3,
    },
}  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of train.py: a tiny model, a few pairs, forty steps of each stage."""
    save_tiny(tmp_path / "model", "gpt2")  # gpt2 has dropout
    stages.write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["--recipe", "recipe.yaml", "--actor-model", "model", "--data-path", "pairs.jsonl"]
    return [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words]


def uninterrupted(killed: Path, whole: Path) -> None:
    """The same three stages in this process, each from the settings that train.py wrote and its own predecessors."""
    for config_class, main in (
        (SFTConfig, step1_sft.main),
        (RewardConfig, step2_reward.main),
        (PPOConfig, step3_ppo.main),
    ):
        name = main.__name__.partition(".")[0]
        text = (killed / name / CONFIG_NAME).read_text().replace(str(killed), str(whole))
        main.run(config_class(**yaml.safe_load(text)))


@pytest.mark.usefixtures("one_rank")
def test_a_run_killed_in_every_stage_ends_as_if_it_had_not_been(arguments: list[str], tmp_path: Path) -> None:
    """SIGKILL to train.py takes its rank along, between two checkpoints or while one is written. SIGTERM writes one."""
    run = tmp_path / "run"
    for stage, step in (("step1_sft", 6), ("step2_reward", 7), ("step3_ppo", 5)):
        code, said = train(arguments, run, stop=after_step(run / stage, step))
        assert code == -signal.SIGKILL, said
        assert last_step(run / stage) >= step
        assert not (run / stage / DONE_NAME).exists()

    code, said = train(arguments, run, stop=after_step(run / "step3_ppo", 14), number=signal.SIGTERM)
    assert code == EXIT_TERMINATED, said
    assert "finished before" in said  # stages 1 and 2
    assert "resumed after iteration" in said
    newest = sorted((run / "step3_ppo/checkpoints").glob("step-*"))[-1]
    assert f"a checkpoint of step {int(newest.name[-8:])} is written" in said

    code, said = train(arguments, run)
    assert code == EXIT_DONE, said
    assert f"resumed after iteration {int(newest.name[-8:])} of 26" in said
    uninterrupted(run, tmp_path / "whole")
    for stage in ("step1_sft", "step2_reward", "step3_ppo"):
        assert list(differences(tmp_path / "whole" / stage, run / stage)) == []
