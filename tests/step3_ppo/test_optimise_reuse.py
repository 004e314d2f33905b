"""The first optimiser step on the forward passes that scored its rows: the same training with fewer of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from step3_ppo.experience import make_experience
from step3_ppo.optimise import first_rows, optimise
from step3_ppo.roles import Roles
from tests.helpers import engines, ppo


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ppo.save_models(tmp_path_factory.mktemp("models"))


def trained(models: dict[str, str], *, reuse: bool, **changes: Any) -> tuple[dict[str, Any], dict[str, float], int]:
    """Two iterations on a fixed rollout: every weight, the last figures, and how often the actor scored."""
    settings = ppo.config(
        models, reuse_forward=reuse, actor_learning_rate=1e-2, lora_learning_rate=1e-2, critic_learning_rate=1e-2,
        adam_eps=1.0, micro_batch_size=2, **changes,
    )  # fmt: skip
    torch.manual_seed(0)  # adapters
    roles = ppo.roles(settings)
    calls = _counted(roles)
    figures: dict[str, float] = {}
    for iteration in range(2):
        rows = first_rows(settings, iteration) if reuse else ()
        e = make_experience(ppo.rollout(), roles, settings, kl_coef=0.1, first_step=rows)
        assert len(e.kept) == -(-len(rows) // 2 // torch.distributed.get_world_size())
        figures = optimise(e, roles, settings, iteration=iteration, first_step=0).means()
        assert not e.kept
    weights = {f"actor {n}": w for n, w in engines.weights(roles.actor.engine).items()}
    weights |= {f"critic {n}": w for n, w in engines.weights(roles.critic.engine, of="model").items()}
    return weights, figures, len(calls)


def _counted(roles: Roles) -> list[int]:
    calls, scores = [], roles.actor.scores

    def scores_and_counts(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return scores(*args, **kwargs)

    roles.actor.scores = scores_and_counts  # type: ignore[method-assign]
    return calls


CASES: list[dict[str, Any]] = [
    {"actor_zero_stage": 0, "critic_zero_stage": 0},
    {"actor_zero_stage": 1, "critic_zero_stage": 2},
    {"entropy_coef": 0.02, "mini_batch_size": 4, "ppo_epochs": 2},
    {"lora_rank": 4, "activation_checkpointing": True},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_the_same_weights_with_fewer_passes(one_rank: None, models: dict[str, str], changes: dict[str, Any]) -> None:
    """8 rows in micro-batches of 2: scoring takes 4 passes, and each optimiser step as many as it has micro-batches,
    but for the first of an iteration."""
    wanted, plain_figures, plain_calls = trained(models, reuse=False, **changes)
    found, figures, calls = trained(models, reuse=True, **changes)
    assert engines.furthest(found, wanted) < 1e-5
    assert figures == pytest.approx(plain_figures, rel=1e-3, abs=1e-5)
    of_first_steps = 2 * changes.get("mini_batch_size", 8) // 2
    assert plain_calls == 2 * (4 + 4 * changes.get("ppo_epochs", 1))
    assert calls == plain_calls - of_first_steps


def _on_ranks(models: dict[str, str]) -> float:
    wanted, _, plain_calls = trained(models, reuse=False)
    found, _, calls = trained(models, reuse=True)
    assert calls == plain_calls - 4
    return engines.furthest(found, wanted)


def test_the_same_weights_on_two_ranks(models: dict[str, str], run_ranks: Any) -> None:
    assert max(run_ranks(_on_ranks, models)) < 1e-5


def test_nothing_is_kept_that_another_step_would_use(one_rank: None, models: dict[str, str]) -> None:
    settings = ppo.config(models, mini_batch_size=4)
    roles = ppo.roles(settings)
    rows = first_rows(settings, 0)
    e = make_experience(ppo.rollout(), roles, settings, kl_coef=0.1, first_step=rows[::-1])
    with pytest.raises(ValueError, match="not those of the first optimiser step"):
        optimise(e, roles, settings, iteration=0, first_step=0)


def test_early_stop_frees_what_was_kept(one_rank: None, models: dict[str, str]) -> None:
    settings = ppo.config(models, early_stop_kl=1e-9)
    roles = ppo.roles(settings)
    e = make_experience(ppo.rollout(), roles, settings, kl_coef=0.1, first_step=first_rows(settings, 0))
    e.old_logprobs_BR = e.old_logprobs_BR - 1.0
    assert optimise(e, roles, settings, iteration=0, first_step=0).stopped_early
    assert not e.kept


def test_zero_3_is_refused(models: dict[str, str]) -> None:
    (problem,) = ppo.config(models, reuse_forward=True, critic_zero_stage=3).problems(1)
    assert "reuse_forward: ZeRO-3 gathers weights" in problem
