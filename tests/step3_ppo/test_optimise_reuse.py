"""The first optimiser step on the forward passes that scored its rows: the same training with fewer of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.hardware import Machine
from step3_ppo.batches import mini_batches
from step3_ppo.experience import Experience
from step3_ppo.optimise import optimise
from step3_ppo.passes import ForwardPasses
from step3_ppo.roles import Roles
from tests.helpers import engines, ppo


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ppo.save_models(tmp_path_factory.mktemp("models"))


def trained(models: dict[str, str], *, reuse: bool, **changes: Any) -> tuple[dict[str, Any], dict[str, float], int]:
    """Two iterations on a fixed rollout: every weight, the last metrics, and how often the actor scored."""
    settings = ppo.config(
        models, reuse_forward=reuse, actor_learning_rate=1e-2, lora_learning_rate=1e-2, critic_learning_rate=1e-2,
        adam_eps=1.0, micro_batch_size=2, **changes,
    )  # fmt: skip
    torch.manual_seed(0)  # adapters
    roles = ppo.roles(settings)
    calls, passes = _counted(roles), ForwardPasses(roles, settings)
    metrics: dict[str, float] = {}
    for iteration in range(2):
        e = measured(passes, iteration)
        rows = settings.mini_batch_size if reuse else 0
        assert kept(passes) == -(-rows // 2 // torch.distributed.get_world_size())
        metrics = optimise(e, passes, settings, iteration=iteration, steps_before=0).means()
        assert not kept(passes)
    weights = {f"actor {n}": w for n, w in engines.weights(roles.actor.engine).items()}
    weights |= {f"critic {n}": w for n, w in engines.weights(ppo.critic_of(roles).engine, of="model").items()}
    return weights, metrics, len(calls)


def measured(passes: ForwardPasses, iteration: int = 0) -> Experience:
    found = passes.measure(ppo.rollout(), iteration)
    return ppo.learnable(found, passes.roles.reward, passes.config, kl_coef=0.1)


def kept(passes: ForwardPasses) -> int:
    """The micro-batches whose forward passes lie in memory, of actor and critic alike."""
    of_actor, of_critic = len(passes._kept_of_actor.passes), len(passes._kept_of_critic.passes)
    assert of_actor == of_critic
    return of_actor


def _counted(roles: Roles) -> list[int]:
    calls, logprobs = [], roles.actor.logprobs

    def logprobs_and_counts(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return logprobs(*args, **kwargs)

    roles.actor.logprobs = logprobs_and_counts  # type: ignore[method-assign]
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
    wanted, plain_metrics, plain_calls = trained(models, reuse=False, **changes)
    found, metrics, calls = trained(models, reuse=True, **changes)
    assert engines.furthest(found, wanted) < 1e-5
    assert metrics == pytest.approx(plain_metrics, rel=1e-3, abs=1e-5)
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


def test_what_is_kept_serves_its_own_rows_and_only_once(one_rank: None, models: dict[str, str]) -> None:
    """After an optimiser step they would be of weights that are no more."""
    settings = ppo.config(models, mini_batch_size=4, micro_batch_size=2, reuse_forward=True)
    roles = ppo.roles(settings)
    calls, passes = _counted(roles), ForwardPasses(roles, settings)
    first, second = mini_batches(8, 4, seed=settings.seed, iteration=0, epoch=0)
    e = measured(passes)
    for rows, made in ((first, 0), (first, 2)):
        before = len(calls)
        assert len(list(passes.actor(e.rollout, rows, with_entropy=False))) == 2
        assert len(calls) - before == made
    # another mini-batch comes first, or another rollout: nothing of what was kept is used, then or later
    for rows, other in ((second, None), (first, ppo.rollout(even=True))):
        e = measured(passes)
        assert kept(passes) == 2
        before = len(calls)
        list(passes.actor(other or e.rollout, rows, with_entropy=False))
        list(passes.actor(e.rollout, first, with_entropy=False))
        assert len(calls) - before == 4


def test_early_stop_frees_what_was_kept(one_rank: None, models: dict[str, str]) -> None:
    settings = ppo.config(models, early_stop_kl=1e-9, reuse_forward=True)
    passes = ForwardPasses(ppo.roles(settings), settings)
    e = measured(passes)
    assert kept(passes) == 1
    e.old_logprobs_BR = e.old_logprobs_BR - 1.0
    assert optimise(e, passes, settings, iteration=0, steps_before=0).stopped_early
    assert not kept(passes)


def test_an_experience_that_is_not_finite_is_skipped_and_freed(one_rank: None, models: dict[str, str]) -> None:
    settings = ppo.config(models, reuse_forward=True)
    roles = ppo.roles(settings)
    passes = ForwardPasses(roles, settings)
    e = measured(passes)
    e.scores_B[3] = float("nan")
    assert optimise(e, passes, settings, iteration=0, steps_before=0).steps == 0
    assert not kept(passes)
    assert roles.skipped_steps == 1
    assert [engine.steps_done for engine in roles.engines.values()] == [0, 0]


def test_nothing_is_kept_while_only_the_critic_learns(one_rank: None, models: dict[str, str]) -> None:
    settings = ppo.config(models, reuse_forward=True, critic_warmup_iterations=1)
    passes = ForwardPasses(ppo.roles(settings), settings)
    measured(passes, 0)
    assert kept(passes) == 0
    measured(passes, 1)
    assert kept(passes) == 1


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_zero_3_is_refused(one_rank: None, models: dict[str, str], role: str) -> None:
    """With the plan, and also where a loop of one's own builds the roles: its gradients were wrong without a word."""
    settings = ppo.config(models, reuse_forward=True, **{f"{role}_zero_stage": 3})
    (problem,) = settings.problems(Machine(ranks=1))
    assert "reuse_forward: ZeRO-3 gathers weights" in problem
    with pytest.raises(ConfigError, match="reuse_forward: ZeRO-3 gathers weights"):
        ForwardPasses(ppo.roles(settings), settings)
