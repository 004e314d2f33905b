"""One PPO step on a fixed rollout: the gradient is that of the whole mini-batch, however it is split.

Gradients are read off the weights: one AdamW step with ε = 1 moves a weight by lr · g / (|g| + 1), and with a rate of
1000 the weight's own digits do not blur it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.batches import StepSampler
from step3_ppo.batches import mini_batches
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Experience
from step3_ppo.optimise import Totals, optimise, steps_per_iteration
from step3_ppo.passes import ForwardPasses
from step3_ppo.pretraining_mix import PretrainingMix
from step3_ppo.roles import Roles
from tests.helpers import engines, ppo

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
RATE = 1000.0
READ_GRADIENT: dict[str, Any] = {
    "actor_learning_rate": RATE, "critic_learning_rate": RATE, "adam_eps": 1.0, "entropy_coef": 0.02, "ema": False,
}  # fmt: skip
PTX_COEF = 0.7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ppo.save_models(tmp_path_factory.mktemp("models"))


def gradients(models: dict[str, str], *, even: bool = False, **changes: Any) -> dict[str, Tensor]:
    """What one optimise() of one mini-batch does to every weight of actor and critic, as gradients."""
    settings = ppo.config(models, **READ_GRADIENT, **changes)
    roles = ppo.roles(settings)
    ptx = PretrainingMix(ppo.text_rows(), StepSampler(8, settings.mini_batch_size, seed=0), PTX_COEF)
    before = _weights(roles)
    totals = optimised(ppo.experience(ppo.rollout(even=even)), roles, settings, ptx=ptx)
    assert totals.steps == 1
    moved = {name: (before[name] - after).double() / RATE for name, after in _weights(roles).items()}
    return {name: step / (1 - step.abs()) for name, step in moved.items()}


def optimised(
    e: Experience, roles: Roles, settings: PPOConfig, *, iteration: int = 0, ptx: PretrainingMix | None = None
) -> Totals:
    passes = ForwardPasses(roles, settings)
    return optimise(e, passes, settings, iteration=iteration, steps_before=iteration, ptx=ptx)


def _weights(roles: Roles) -> dict[str, Tensor]:
    out = {f"actor {name}": value for name, value in engines.weights(roles.actor.engine).items()}
    if roles.critic is None:
        return out
    return out | {f"critic {name}": value for name, value in engines.weights(roles.critic.engine, of="model").items()}


def plain_gradients(models: dict[str, str], *, even: bool = False) -> dict[str, Tensor]:
    """The spec's formulas on whole logits, one unpadded sequence at a time, with torch's autograd."""
    actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
    critic: Any = AutoModelForSequenceClassification.from_pretrained(models["reward_model"])
    fixed = ppo.rollout(even=even)
    e = ppo.experience(fixed)
    count = sum(len(r) for r in fixed.responses)
    actor_total = critic_total = torch.zeros(())
    for row in range(8):
        old, advantages, values, returns = (
            ppo.flat(t, fixed, row) for t in (e.old_logprobs_BR, e.advantages_BR, e.values_BR, e.returns_BR)
        )
        new, entropy = ppo.plain_logprobs(actor, fixed, row)
        ratio = (new - old).exp()
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        actor_total = actor_total - surrogate.sum() / count - 0.02 * entropy.sum() / count
        v = ppo.plain_values(critic, fixed, row)
        clipped = values + (v - values).clamp(-0.2, 0.2)
        critic_total = critic_total + 0.5 * torch.maximum((v - returns) ** 2, (clipped - returns) ** 2).sum() / count
    texts = [torch.tensor([row["input_ids"]]) for row in ppo.text_rows()]
    predicted = sum(t.shape[1] - 1 for t in texts)
    for ids in texts:
        actor_total = actor_total + PTX_COEF * actor(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1) / predicted
    (actor_total + critic_total).backward()
    out = {f"actor {n}": p.grad.double() for n, p in actor.named_parameters()}
    return out | {f"critic {n}": p.grad.double() for n, p in critic.named_parameters()}


def relative_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest of ‖difference‖ / ‖wanted‖ over the weights of each model together."""
    assert found.keys() == wanted.keys()
    worst = 0.0
    for model in ("actor", "critic"):
        names = [name for name in wanted if name.startswith(model)]
        difference = torch.cat([(found[n] - wanted[n]).flatten() for n in names])
        worst = max(worst, float(difference.norm() / torch.cat([wanted[n].flatten() for n in names]).norm()))
    return worst


@pytest.fixture(scope="module")
def wanted(models: dict[str, str]) -> dict[str, Tensor]:
    return plain_gradients(models)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
def test_gradient_is_the_papers_for_any_split(
    models: dict[str, str], wanted: dict[str, Tensor], zero_stage: int, micro_batch_size: int
) -> None:
    """Clipped losses, entropy bonus and pretraining mix in one step; with 1 row nothing is padded."""
    found = gradients(
        models, micro_batch_size=micro_batch_size, actor_zero_stage=zero_stage, critic_zero_stage=zero_stage
    )  # fmt: skip
    assert relative_error(found, wanted) < 1e-5


def test_gradient_without_padding(models: dict[str, str]) -> None:
    wanted = plain_gradients(models, even=True)
    for micro_batch_size in (1, 8):
        assert relative_error(gradients(models, even=True, micro_batch_size=micro_batch_size), wanted) < 1e-5


def test_recomputed_activations_give_the_same_gradient(models: dict[str, str], wanted: dict[str, Tensor]) -> None:
    assert relative_error(gradients(models, micro_batch_size=4, activation_checkpointing=True), wanted) < 1e-5


def _on_ranks(models: dict[str, str], wanted: dict[str, Tensor]) -> dict[str, float]:
    far = {}
    for zero_stage, micro_batch_size in ((0, 2), (1, 1), (2, 1), (2, 4), (3, 2)):
        stages: dict[str, Any] = {"actor_zero_stage": zero_stage, "critic_zero_stage": zero_stage}
        found = gradients(models, micro_batch_size=micro_batch_size, **stages)
        far[f"zero {zero_stage}, micro-batch {micro_batch_size}"] = relative_error(found, wanted)
    return far


def test_gradient_on_two_ranks(
    run_ranks: Callable[..., list[Any]], models: dict[str, str], wanted: dict[str, Tensor]
) -> None:
    for far in run_ranks(_on_ranks, models, wanted):
        assert max(far.values()) < 1e-5, far


def test_mini_batches_are_one_global_permutation_per_epoch() -> None:
    epochs = [mini_batches(10, 4, seed=1, iteration=2, epoch=e) for e in (0, 1)]
    for epoch in epochs:
        assert [len(rows) for rows in epoch] == [4, 4, 2]
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert epochs[0] != epochs[1]
    assert mini_batches(10, 4, seed=1, iteration=2, epoch=0) == epochs[0]
    assert mini_batches(10, 4, seed=1, iteration=3, epoch=0) != epochs[0]
    assert mini_batches(10, 4, seed=2, iteration=2, epoch=0) != epochs[0]


def test_steps_of_an_iteration(models: dict[str, str]) -> None:
    """2 epochs of 8 sequences in mini-batches of 3: 2 · ⌈8/3⌉ = 6, and 6 are done."""
    settings = ppo.config(models, ppo_epochs=2, mini_batch_size=3, rollout_batch_size=8)
    assert steps_per_iteration(settings) == 6
    roles = ppo.roles(settings)
    assert optimised(ppo.experience(ppo.rollout()), roles, settings).steps == 6
    assert [engine.steps_done for engine in roles.engines.values()] == [6, 6]


def test_each_epoch_takes_every_row_once_with_the_mix_too(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the mix's micro-batches was taken for that of the groups, so the second epoch lost rows: of 8 in
    groups of 3 it took 6, in another order than without the mix."""
    settings = ppo.config(models, ppo_epochs=2, mini_batch_size=4, micro_batch_size=3, rollout_batch_size=8)
    roles = ppo.roles(settings)
    passes, taken = ForwardPasses(roles, settings), []
    forward = passes.actor
    monkeypatch.setattr(passes, "actor", lambda r, rows, **options: taken.append(rows) or forward(r, rows, **options))
    ptx = PretrainingMix(ppo.text_rows(), StepSampler(8, 4, seed=0), PTX_COEF)
    optimise(ppo.experience(ppo.rollout()), passes, settings, iteration=0, steps_before=0, ptx=ptx)
    of_run = {"seed": settings.seed, "iteration": 0}
    assert taken == [rows for epoch in range(2) for rows in mini_batches(8, 4, **of_run, epoch=epoch)]


def test_early_stop_moves_neither_engine_and_leaves_nothing(models: dict[str, str]) -> None:
    """The old log-probabilities are far off, so approx_kl is above the limit at once."""
    settings = ppo.config(models, early_stop_kl=1e-4, actor_learning_rate=1e-2, actor_zero_stage=2)
    roles = ppo.roles(settings)
    before = _weights(roles)
    totals = optimised(ppo.experience(ppo.rollout()), roles, settings)
    assert totals.stopped_early
    assert totals.steps == 0
    assert engines.furthest(_weights(roles), before) == 0.0
    # the next iteration is within the limit: its step is that of fresh engines
    relaxed = settings.model_copy(update={"early_stop_kl": None})
    fresh = ppo.roles(relaxed)
    for each in (roles, fresh):
        optimised(ppo.experience(ppo.rollout()), each, relaxed)
    assert engines.furthest(_weights(roles), _weights(fresh)) == 0.0


def test_early_stop_lets_near_steps_through(models: dict[str, str]) -> None:
    settings = ppo.config(models, early_stop_kl=1e3)
    totals = optimised(ppo.experience(ppo.rollout()), ppo.roles(settings), settings)
    assert (totals.steps, totals.stopped_early) == (1, False)


def test_critic_warms_up_alone(models: dict[str, str]) -> None:
    settings = ppo.config(models, critic_warmup_iterations=1, critic_learning_rate=1e-2, actor_learning_rate=1e-2)
    roles = ppo.roles(settings)
    before, e = _weights(roles), ppo.experience(ppo.rollout())
    optimised(e, roles, settings)
    moved = {name for name, value in _weights(roles).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("critic") for name in moved)
    assert roles.actor.engine.steps_done == 0
    optimised(e, roles, settings, iteration=1)
    assert roles.actor.engine.steps_done == 1


def test_reported_figures_are_means_over_counted_tokens(models: dict[str, str]) -> None:
    settings = ppo.config(models, micro_batch_size=3)
    roles = ppo.roles(settings)
    fixed = ppo.rollout()
    e = ppo.experience(fixed)
    ptx = PretrainingMix(ppo.text_rows(), StepSampler(8, 8, seed=0), PTX_COEF)
    totals = optimised(e, roles, settings, ptx=ptx).means()
    actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
    with torch.no_grad():
        new = torch.cat([ppo.plain_logprobs(actor, fixed, row)[0] for row in range(8)])
        texts = [torch.tensor([row["input_ids"]]) for row in ppo.text_rows()]
        sums = [float(actor(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in texts]
    old = torch.cat([ppo.flat(e.old_logprobs_BR, fixed, row) for row in range(8)])
    advantages = torch.cat([ppo.flat(e.advantages_BR, fixed, row) for row in range(8)])
    ratio = (new - old).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)
    assert totals["ppo/approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-4)
    assert 0.1 < totals["ppo/clipfrac"] < 0.9
    assert totals["ppo/clipfrac"] == pytest.approx(float((clipped > unclipped).float().mean()))
    assert totals["ppo/actor_loss"] == pytest.approx(float(torch.maximum(unclipped, clipped).mean()), rel=1e-4)
    assert totals["ppo/ptx_loss"] == pytest.approx(sum(sums) / sum(t.shape[1] - 1 for t in texts), rel=1e-4)
