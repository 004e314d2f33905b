"""Passes that measure a rollout: how many rows they take, and that this does not change what they find."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.hardware import Machine
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Measured
from step3_ppo.passes import ForwardPasses
from step3_ppo.rewards.model import ModelReward
from tests.helpers import ppo

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ppo.save_models(tmp_path_factory.mktemp("models"))


class Watched:
    """Roles whose passes are counted: the rows of each, by model."""

    def __init__(self, models: dict[str, str], **changes: Any) -> None:
        settings = ppo.config(models, micro_batch_size=2, **changes)
        self.roles = ppo.roles(settings)
        self.passes = ForwardPasses(self.roles, settings)
        assert isinstance(self.roles.reward, ModelReward)
        critic = ppo.critic_of(self.roles)
        self.rows: dict[str, list[int]] = {"actor": [], "reference": [], "critic": []}
        for name, owner, method in (
            ("actor", self.roles.actor, "logprobs"),
            ("reference", self.roles.actor, "ref_logprobs"),
            ("critic", critic, "values"),
        ):
            setattr(owner, method, self._counting(self.rows[name], getattr(owner, method)))

    @staticmethod
    def _counting(rows: list[int], call: Any) -> Any:
        def counted(batch: Any, **more: Any) -> Any:
            rows.append(len(batch.input_ids_BT))
            return call(batch, **more)

        return counted

    def measure(self) -> Measured:
        return self.passes.measure(ppo.rollout(), 0)


def tables(m: Measured) -> dict[str, Tensor]:
    found = {field.name: getattr(m, field.name) for field in fields(m)}
    return {name: value.double() for name, value in found.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("size, rows", [(None, [2, 2, 2, 2]), (4, [4, 4]), (100, [8]), (1, [1] * 8)])
def test_scoring_takes_its_own_rows_at_once_and_finds_the_same(
    models: dict[str, str], size: int | None, rows: list[int]
) -> None:
    plain, other = Watched(models), Watched(models, scoring_micro_batch_size=size)
    wanted, found = tables(plain.measure()), tables(other.measure())
    assert plain.rows["actor"] == [2, 2, 2, 2]
    assert other.rows == {"actor": rows, "reference": rows, "critic": rows}
    assert found.keys() == wanted.keys() >= {"old_logprobs_BR", "ref_logprobs_BR", "values_BR", "scores_B"}
    for name, table in wanted.items():
        torch.testing.assert_close(found[name], table, rtol=1e-4, atol=1e-5)


def test_training_keeps_its_micro_batches(models: dict[str, str]) -> None:
    watched, rollout = Watched(models, scoring_micro_batch_size=8), ppo.rollout()
    of_actor = [len(rows) for rows, _ in watched.passes.actor(rollout, range(8), with_entropy=False)]
    of_critic = [len(rows) for rows, _ in watched.passes.critic(rollout, range(8))]
    assert of_actor == of_critic == [2, 2, 2, 2]


def test_passes_that_are_kept_have_the_rows_of_training(models: dict[str, str]) -> None:
    """With `reuse_forward` the first step trains on passes that scored: larger ones would hold more activations than
    training may."""
    watched = Watched(models, scoring_micro_batch_size=4, mini_batch_size=4, reuse_forward=True)
    watched.measure()
    assert watched.rows["actor"] == [2, 2, 4]
    assert [len(rows) for rows, _ in watched.passes._kept_of_actor.passes] == [2, 2]


def test_a_size_that_no_pass_has_is_refused() -> None:
    """All rows are in the first step, so every pass that scores is trained on."""
    one: dict[str, Any] = {
        "rollout_batch_size": 8,
        "mini_batch_size": 8,
        "scoring_micro_batch_size": 8,
        "reuse_forward": True,
    }
    (problem,) = PPOConfig(**one).problems(Machine())
    assert problem.startswith("step3_ppo.scoring_micro_batch_size is set but reuse_forward")
    assert PPOConfig(**{**one, "mini_batch_size": 4}).problems(Machine()) == []
    assert PPOConfig(**{**one, "critic_warmup_iterations": 1}).problems(Machine()) == []
