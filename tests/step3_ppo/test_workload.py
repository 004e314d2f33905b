"""What the plan counts of stage 3: the roles that the estimator needs, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.hardware import Machine
from rlhf.memory.phases import stage_memory
from step3_ppo.config import PPOConfig
from step3_ppo.workload import workload

MODEL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 320,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, roles",
    [
        ({}, ["actor", "critic", "reference", "reward model"]),
        ({"lora_rank": 4}, ["actor", "critic", "reward model"]),
        ({"advantage_estimator": "rloo"}, ["actor", "reference", "reward model"]),
        ({"advantage_estimator": "reinforce_pp", "lora_rank": 4}, ["actor", "reward model"]),
    ],
)
def test_roles_are_those_that_are_loaded(changes: dict[str, Any], roles: list[str]) -> None:
    config = PPOConfig(actor_model="a", reward_model="b", iterations=2, responses_per_prompt=4, **changes)
    found = workload(config, {"actor_model": MODEL, "reward_model": MODEL}, Machine(ranks=2))
    assert found is not None
    assert [role.name for role in found.roles] == roles


@pytest.mark.parametrize("size, rows", [(None, 4), (16, 16), (1000, 32)])
def test_passes_that_score_have_rows_of_their_own(size: int | None, rows: int) -> None:
    """At most a rank's share of the rollout; the passes of training stay as they are."""
    config = PPOConfig(actor_model="a", reward_model="b", iterations=2, scoring_micro_batch_size=size)
    machine = Machine(ranks=2, gpus=True, bf16=True)
    found = workload(config, {"actor_model": MODEL, "reward_model": MODEL}, machine)
    assert found is not None and (found.rows, found.scored_rows) == (4, rows)
    beside = {phase.name: phase.beside for phase in stage_memory(found, machine).phases}
    one = 4 * (256 + 256) * 2 * (2 * 64 + 2 * 128)  # of 4 rows
    assert beside["train critic"]["backward"] >= one
    assert beside["score"]["activations"] > rows / 4 * one
