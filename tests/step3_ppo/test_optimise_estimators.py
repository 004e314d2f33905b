"""One step without a critic on a fixed rollout: the gradient is the paper's, of the whole mini-batch, for any split.

As in `test_optimise.py`, gradients are read off the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from data.batches import StepSampler
from step3_ppo.batches import mini_batches
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Experience, Measured, make_experience
from step3_ppo.optimise import Totals, optimise
from step3_ppo.passes import ForwardPasses
from step3_ppo.pretraining_mix import PretrainingMix
from step3_ppo.roles import Roles
from tests.helpers import engines, ppo

pytestmark = pytest.mark.usefixtures("one_rank")
RATE, KL_COEF, ENTROPY_COEF, PTX_COEF = 1000.0, 0.3, 0.02, 0.7
LONGEST = 8  # max_response_length
SCORES = [1.0, 0.0, 0.5, 2.0, -1.0, -1.0, -1.0, -1.0]  # two groups of four; the second one says nothing
MEANS: dict[str, dict[str, Any]] = {
    "rloo": {},
    "grpo": {},
    "dr_grpo": {},
    "reinforce_pp": {"kl_in": "loss"},
    "rloo by token": {"ratio": "token", "loss_mean": "token", "kl_in": "loss"},
    "rloo, KL in the loss": {"kl_in": "loss"},
    "grpo, wide above": {"cliprange_high": 0.6, "cliprange": 0.1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ppo.save_models(tmp_path_factory.mktemp("models"))


def settings_of(models: dict[str, str], case: str, **changes: Any) -> PPOConfig:
    estimator = case.partition(" ")[0].removesuffix(",")
    return ppo.config(
        models, advantage_estimator=estimator, responses_per_prompt=4, actor_learning_rate=RATE, adam_eps=1.0,
        entropy_coef=ENTROPY_COEF, ema=False, kl_coef=KL_COEF, **MEANS[case], **changes,
    )  # fmt: skip


def experience(settings: PPOConfig) -> Experience:
    """A fixed rollout with old and reference log-probabilities such that some ratios are clipped."""
    e = ppo.experience(ppo.rollout())
    mask_BR, old_BR = e.response_mask_BR, e.old_logprobs_BR
    ref_BR = torch.where(mask_BR, old_BR + 0.2 * e.advantages_BR, 0.0)
    m = Measured(e.rollout, mask_BR, old_BR, ref_BR, e.entropy_BR, None, e.scores_B)
    return make_experience(m, torch.tensor(SCORES), settings, kl_coef=settings.kl_coef)


def gradients(models: dict[str, str], case: str, **changes: Any) -> tuple[dict[str, Tensor], Totals]:
    """What one optimise() of one mini-batch does to every weight of the actor, as gradients."""
    settings = settings_of(models, case, **changes)
    roles = ppo.roles(settings)
    assert roles.critic is None
    ptx = PretrainingMix(ppo.text_rows(), StepSampler(8, settings.mini_batch_size, seed=0), PTX_COEF)
    before = engines.weights(roles.actor.engine)
    totals = optimised(experience(settings), roles, settings, ptx=ptx)
    moved = {
        name: (before[name] - after).double() / RATE for name, after in engines.weights(roles.actor.engine).items()
    }
    return {name: step / (1 - step.abs()) for name, step in moved.items()}, totals


def optimised(e: Experience, roles: Roles, settings: PPOConfig, **options: Any) -> Totals:
    return optimise(e, ForwardPasses(roles, settings), settings, iteration=0, steps_before=0, **options)


def plain_gradients(models: dict[str, str], case: str, rows: range = range(8)) -> dict[str, Tensor]:
    """The spec's formulas on whole logits, one unpadded sequence at a time, with torch's autograd."""
    settings, fixed = settings_of(models, case), ppo.rollout()
    e, objective = experience(settings), settings.objective
    low, high = settings.cliprange, settings.cliprange_high or settings.cliprange
    actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
    count = sum(len(fixed.responses[row]) for row in rows)
    total = torch.zeros(())
    for row in rows:
        old, ref, advantages = (
            ppo.flat(t, fixed, row) for t in (e.old_logprobs_BR, e.ref_logprobs_BR, e.advantages_BR)
        )
        new, entropy = ppo.plain_logprobs(actor, fixed, row)
        k3 = (ref - new).exp() - 1 - (ref - new)
        if objective.ratio == "sequence":
            ratio, a = (new.sum() - old.sum()).exp(), advantages[0]
            loss = -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
            loss = loss + (KL_COEF * k3.sum() if objective.kl_in == "loss" else 0.0)
            total = total + loss / len(rows)
        else:
            ratio = (new - old).exp()
            losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
            losses = losses + (KL_COEF * k3 if objective.kl_in == "loss" else 0.0)
            total = (
                total
                + {
                    "token": losses.sum() / count,
                    "sequence": losses.mean() / len(rows),
                    "constant": losses.sum() / (len(rows) * LONGEST),
                }[objective.loss_mean]
            )
        total = total - ENTROPY_COEF * entropy.sum() / count
    texts = [torch.tensor([row["input_ids"]]) for row in ppo.text_rows()]
    predicted = sum(t.shape[1] - 1 for t in texts)
    for ids in texts:
        total = total + PTX_COEF * actor(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1) / predicted
    total.backward()
    return {name: p.grad.double() for name, p in actor.named_parameters()}


def relative_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    difference = torch.cat([(found[name] - wanted[name]).flatten() for name in wanted])
    return float(difference.norm() / torch.cat([wanted[name].flatten() for name in wanted]).norm())


@pytest.mark.parametrize("case", MEANS)
def test_gradient_is_the_papers_for_any_split(models: dict[str, str], case: str) -> None:
    """Normalisers are those of the whole mini-batch: a mean over each micro-batch would differ between the splits."""
    wanted = plain_gradients(models, case)
    for micro_batch_size, zero_stage in ((1, 0), (3, 1), (8, 2)):
        found, totals = gradients(models, case, micro_batch_size=micro_batch_size, actor_zero_stage=zero_stage)
        assert totals.steps == 1
        assert relative_error(found, wanted) < 1e-5


def _on_ranks(models: dict[str, str], wanted: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    far = {}
    for case, of_case in wanted.items():
        for zero_stage, micro_batch_size in ((1, 1), (3, 3)):
            found, _ = gradients(models, case, actor_zero_stage=zero_stage, micro_batch_size=micro_batch_size)
            far[f"{case}, zero {zero_stage}, micro-batch {micro_batch_size}"] = relative_error(found, of_case)
    return far


def test_gradient_on_two_ranks(run_ranks: Callable[..., list[Any]], models: dict[str, str]) -> None:
    """Normalisers are those of all ranks together; the ranks' micro-batches have different lengths."""
    wanted = {case: plain_gradients(models, case) for case in ("rloo", "grpo", "dr_grpo", "rloo, KL in the loss")}
    for far in run_ranks(_on_ranks, models, wanted):
        assert max(far.values()) < 1e-5, far


def test_a_group_without_spread_leaves_the_step(models: dict[str, str]) -> None:
    """Rows 4 to 7 have one score: the means are then over rows 0 to 3, KL and entropy included."""
    found, totals = gradients(models, "grpo", drop_uniform_groups=True, micro_batch_size=3)
    assert totals.steps == 1
    assert relative_error(found, plain_gradients(models, "grpo", range(4))) < 1e-5
    whole, _ = gradients(models, "grpo")
    assert relative_error(whole, found) > 0.1


def test_a_step_without_a_group_is_left_out(models: dict[str, str]) -> None:
    """In mini-batches of one group each, the second group's makes no step; an iteration without any is no error."""
    settings = settings_of(models, "dr_grpo", drop_uniform_groups=True, mini_batch_size=4)
    roles = ppo.roles(settings)
    e = experience(settings)
    assert optimised(e, roles, settings).steps == 1
    e.final_scores_B = torch.ones(8)
    before = engines.weights(roles.actor.engine)
    totals = optimised(e, roles, settings)
    assert (totals.steps, totals.first, roles.skipped_steps) == (0, {}, 0)
    assert engines.furthest(engines.weights(roles.actor.engine), before) == 0.0


def test_groups_never_straddle_mini_batches() -> None:
    """One permutation of the groups; with groups of one row it is the permutation of the rows as ever."""
    found = mini_batches(24, 8, seed=1, iteration=2, epoch=0, group_size=4)
    assert [len(rows) for rows in found] == [8, 8, 8]
    assert sorted(row for rows in found for row in rows) == list(range(24))
    for rows in found:
        assert all(rows[at : at + 4] == list(range(rows[at], rows[at] + 4)) for at in (0, 4))
        assert all(rows[at] % 4 == 0 for at in (0, 4))
    assert found != mini_batches(24, 8, seed=1, iteration=2, epoch=1, group_size=4)


def test_figures_of_the_loss_are_its_own_means(models: dict[str, str]) -> None:
    """Clipped sequences are counted by sequences, the KL in the loss as the loss, approx_kl always by tokens."""
    for case in ("rloo, KL in the loss", "grpo"):
        settings, fixed = settings_of(models, case, micro_batch_size=3), ppo.rollout()
        e = experience(settings)
        totals = optimised(e, ppo.roles(settings), settings).means()
        actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
        with torch.no_grad():
            new = [ppo.plain_logprobs(actor, fixed, row)[0] for row in range(8)]
        old, ref, a = (
            [ppo.flat(t, fixed, row) for row in range(8)]
            for t in (e.old_logprobs_BR, e.ref_logprobs_BR, e.advantages_BR)
        )
        k3 = [(r - n).exp() - 1 - (r - n) for n, r in zip(new, ref, strict=True)]
        flat = torch.cat(new) - torch.cat(old)
        assert totals["ppo/approx_kl"] == pytest.approx(float((flat.exp() - 1 - flat).mean()), rel=1e-4)
        if settings.objective.ratio == "sequence":
            ratio, a_B = torch.stack([(n - o).sum().exp() for n, o in zip(new, old, strict=True)]), [x[0] for x in a]
            plain, clipped = (-torch.stack(a_B) * r for r in (ratio, ratio.clamp(0.8, 1.2)))
            loss, kl = torch.maximum(plain, clipped).mean(), torch.stack([k.sum() for k in k3]).mean()
        else:
            ratio = flat.exp()
            plain, clipped = (-torch.cat(a) * r for r in (ratio, ratio.clamp(0.8, 1.2)))
            of_rows = torch.maximum(plain, clipped).split([len(n) for n in new])
            loss, kl = torch.stack([x.mean() for x in of_rows]).mean(), torch.stack([k.mean() for k in k3]).mean()
        assert totals["ppo/clipfrac"] == pytest.approx(float((clipped > plain).float().mean()))
        assert 0 < totals["ppo/clipfrac"] < 1
        assert totals["ppo/actor_loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
        assert totals["ppo/kl_loss"] == pytest.approx(float(kl), rel=1e-4)


def test_kept_passes_serve_the_first_step_without_a_critic(models: dict[str, str]) -> None:
    """With `reuse_forward` the first mini-batch is one of whole groups; what is left out of it is computed again."""
    weights = []
    for reuse, drop in ((False, False), (True, False), (False, True), (True, True)):
        settings = settings_of(
            models, "grpo", reuse_forward=reuse, drop_uniform_groups=drop, mini_batch_size=4, micro_batch_size=2
        ).model_copy(update={"actor_learning_rate": 1e-2})
        roles = ppo.roles(settings)
        passes = ForwardPasses(roles, settings)
        for iteration in range(2):
            m = passes.measure(ppo.rollout(), iteration)
            e = make_experience(m, torch.tensor(SCORES), settings, kl_coef=KL_COEF)
            optimise(e, passes, settings, iteration=iteration, steps_before=0)
        weights.append(engines.weights(roles.actor.engine))
    assert engines.furthest(weights[0], weights[1]) < 1e-5
    assert engines.furthest(weights[2], weights[3]) < 1e-5
    assert engines.furthest(weights[0], weights[2]) > 1e-3
