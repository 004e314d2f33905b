"""Rewards, advantages, returns and the KL controller: worked by hand, and against versions written from the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from rlhf.models.tensors import whiten
from step3_ppo.advantages import (
    KLController,
    estimate_advantages,
    explained_variance,
    kl_estimates,
    kl_per_token,
    normalise_scores,
    shape_rewards,
)

# two responses, of 3 and of 1 token
MASK = tensor([[True, True, True], [True, False, False]])


def test_scores_are_normalised_then_clipped() -> None:
    """(7 − 1)/2 = 3 → clip 2; (−1 − 1)/2 = −1; (−99 − 1)/2 = −50 → −2."""
    assert normalise_scores(tensor([7.0, -1.0, -99.0]), mean=1.0, std=2.0, clip=2.0).tolist() == [2.0, -1.0, -2.0]


def test_kl_counts_only_where_the_mask_does() -> None:
    logprobs, ref = tensor([[-1.0, -2.0, -1.0], [-3.0, -9.0, math.nan]]), tensor([[-1.5, -1.0, -1.0], [-2.0, 0.0, 0.0]])
    assert kl_per_token(logprobs, ref, MASK).tolist() == [[0.5, -1.0, 0.0], [-1.0, 0.0, 0.0]]


def test_three_estimates_of_the_kl() -> None:
    """k1 = ½ and −½: k1 means 0, k2 = ⅛, k3 = mean(e^−½ − ½, e^½ − 1½) = (0.10653 + 0.14872)/2."""
    estimates = kl_estimates(tensor([[0.5, -0.5, 99.0]]), tensor([[True, True, False]]))
    assert estimates["k1"] == 0.0
    assert estimates["k2"] == pytest.approx(0.125)
    assert estimates["k3"] == pytest.approx((math.exp(-0.5) - 0.5 + math.exp(0.5) - 1.5) / 2)
    assert kl_estimates(tensor([[1.0]]), tensor([[False]])) == {"k1": 0.0, "k2": 0.0, "k3": 0.0}


def test_estimates_agree_with_the_true_kl_on_samples() -> None:
    """Schulman's (2020) claim itself: on samples of p, k1 and k3 average to KL(p‖q), and k3 is never negative."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(20, generator=generator).softmax(0), torch.randn(20, generator=generator).softmax(0)
    true = float((p * (p / q).log()).sum())
    draws = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    k1 = (p / q).log()[draws][None]
    estimates = kl_estimates(k1, torch.ones_like(k1, dtype=torch.bool))
    assert estimates["k1"] == pytest.approx(true, rel=0.02)
    assert estimates["k3"] == pytest.approx(true, rel=0.02)


def test_score_lands_on_the_last_counted_token() -> None:
    """kl_coef 0.1: row 1 gets −0.05, +0.1 and 0 + 2 at its end; row 2 its −0.1·1 + (−3) at its only token."""
    kl = tensor([[0.5, -1.0, 0.0], [1.0, 7.0, 7.0]])
    rewards = shape_rewards(tensor([2.0, -3.0]), kl, MASK, kl_coef=0.1)
    torch.testing.assert_close(rewards, tensor([[-0.05, 0.1, 2.0], [-3.1, 0.0, 0.0]]))


def test_a_row_without_tokens_gets_no_reward() -> None:
    rewards = shape_rewards(tensor([2.0]), tensor([[0.0, 0.0]]), tensor([[False, False]]), kl_coef=0.1)
    assert rewards.tolist() == [[0.0, 0.0]]


def test_docstrings_example_of_the_rewards() -> None:
    rewards = shape_rewards(tensor([1.0]), tensor([[0.5, 0.1]]), tensor([[True, True]]), kl_coef=0.1)
    torch.testing.assert_close(rewards, tensor([[-0.05, 0.99]]))


def test_advantages_by_hand() -> None:
    """γ = 1, λ = ½, values [1, 2, 3], rewards [0, 0, 4]:

    δ = [0 + 2 − 1, 0 + 3 − 2, 4 + 0 − 3] = [1, 1, 1]; A₂ = 1, A₁ = 1 + ½·1 = 1.5, A₀ = 1 + ½·1.5 = 1.75;
    returns = A + V = [2.75, 3.5, 4]. The second row ends after its first token: A = 2 − 5 = −3, return 2.
    """
    values = tensor([[1.0, 2.0, 3.0], [5.0, 100.0, 100.0]])
    rewards = tensor([[0.0, 0.0, 4.0], [2.0, 50.0, 50.0]])
    advantages, returns = estimate_advantages(values, rewards, MASK, gamma=1.0, gae_lambda=0.5)
    assert advantages.tolist() == [[1.75, 1.5, 1.0], [-3.0, 0.0, 0.0]]
    assert returns.tolist() == [[2.75, 3.5, 4.0], [2.0, 0.0, 0.0]]


def test_discount_by_hand() -> None:
    """γ = ½, λ = 0: A is the one-step error alone: [0 + ½·2 − 1, 4 − 2] = [0, 2]; γ = ½, λ = 1: A₀ = 0 + ½·2 = 1."""
    values, rewards, mask = tensor([[1.0, 2.0]]), tensor([[0.0, 4.0]]), tensor([[True, True]])
    assert estimate_advantages(values, rewards, mask, gamma=0.5, gae_lambda=0.0)[0].tolist() == [[0.0, 2.0]]
    advantages, returns = estimate_advantages(values, rewards, mask, gamma=0.5, gae_lambda=1.0)
    assert advantages.tolist() == [[1.0, 2.0]]
    assert returns.tolist() == [[2.0, 4.0]]  # at λ = 1 the return is the discounted sum: 0 + ½·4


def _advantages_by_definition(values: list[float], rewards: list[float], gamma: float, lam: float) -> list[float]:
    """Schulman et al. 2016, eq. 16: Σ_l (γλ)^l δ_{t+l}, summed as written, without a recursion."""
    later = [*values[1:], 0.0]
    deltas = [r + gamma * following - v for r, v, following in zip(rewards, values, later, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))
    ]  # fmt: skip


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    gamma=st.sampled_from([1.0, 0.9, 0.3]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_advantages_are_the_papers_sum(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    """For rows of any lengths, and whatever stands beyond them."""
    rng = np.random.default_rng(seed)
    width = max(lengths) + 1
    values, rewards = rng.normal(size=(2, len(lengths), width))
    mask = torch.arange(width) < tensor(lengths)[:, None]
    advantages, returns = estimate_advantages(tensor(values), tensor(rewards), mask, gamma=gamma, gae_lambda=lam)
    for row, length in enumerate(lengths):
        wanted = _advantages_by_definition(list(values[row, :length]), list(rewards[row, :length]), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(wanted)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(wanted, values[row], strict=False)]
        )
        assert advantages[row, length:].abs().sum() == returns[row, length:].abs().sum() == 0


def test_values_beyond_the_end_do_not_leak() -> None:
    """A NaN in the padding of a value table must not reach what counts."""
    values = tensor([[1.0, math.nan]])
    advantages, returns = estimate_advantages(
        values, tensor([[1.0, math.nan]]), tensor([[True, False]]), gamma=1.0, gae_lambda=0.95
    )
    assert advantages.tolist() == [[0.0, 0.0]]
    assert returns.tolist() == [[1.0, 0.0]]


def test_whitened_rewards_keep_their_mean() -> None:
    """Whitened before the advantages, mean kept: [0, 4] → (x − 2)/2 + 2 = [1, 3]."""
    whitened = whiten(tensor([[0.0, 4.0, 9.0]]), tensor([[True, True, False]]), keep_mean=True)
    torch.testing.assert_close(whitened, tensor([[1.0, 3.0, 0.0]]))


def test_explained_variance_by_hand() -> None:
    """Returns 0 and 4 (variance 4), values 1 and 3 (errors −1 and 1, variance 1): 1 − 1/4. A constant error is none."""
    mask = tensor([[True, True, False]])
    assert explained_variance(tensor([[1.0, 3.0, 9.0]]), tensor([[0.0, 4.0, 0.0]]), mask) == 0.75
    assert explained_variance(tensor([[-7.0, -3.0, 9.0]]), tensor([[0.0, 4.0, 0.0]]), mask) == 1.0
    assert explained_variance(tensor([[4.0, 0.0, 9.0]]), tensor([[0.0, 4.0, 0.0]]), mask) == -3.0
    assert explained_variance(tensor([[1.0, 2.0, 9.0]]), tensor([[2.0, 2.0, 0.0]]), mask) == 0.0


def test_a_fixed_coefficient_stays() -> None:
    controller = KLController(0.05)
    controller.update(1000.0, 64)
    assert controller.kl_coef == 0.05


def test_controller_by_hand() -> None:
    """Target 6, horizon 100, n = 50. KL 6.6: ·(1 + 0.1·½) = 1.05; KL 60: error clipped to 0.2, ·1.1; KL 0: ·0.9."""
    controller = KLController(1.0, target=6.0, horizon=100)
    controller.update(6.6, 50)
    assert controller.kl_coef == pytest.approx(1.05)
    controller.update(60.0, 50)
    assert controller.kl_coef == pytest.approx(1.05 * 1.1)
    controller.update(0.0, 50)
    assert controller.kl_coef == pytest.approx(1.05 * 1.1 * 0.9)
    controller.update(6.0, 50)
    assert controller.kl_coef == pytest.approx(1.05 * 1.1 * 0.9)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.floats(0.1, 20), st.integers(1, 512))
def test_controller_is_the_papers(kls: list[float], target: float, sequences: int) -> None:
    """Ziegler et al. 2019, §2.2: e = clip((KL − target)/target, −0.2, 0.2); β ← β(1 + K_β·e), K_β = n/horizon."""
    controller, beta = KLController(0.1, target=target, horizon=10_000), 0.1
    for kl in kls:
        controller.update(kl, sequences)
        beta *= 1 + np.clip((kl - target) / target, -0.2, 0.2) * sequences / 10_000
    assert controller.kl_coef == pytest.approx(beta)


def test_controller_settles_at_its_target() -> None:
    """A policy whose KL is inversely proportional to the coefficient ends near the target."""
    controller = KLController(0.05, target=3.0, horizon=100)
    for _ in range(300):
        controller.update(1.0 / controller.kl_coef, 50)
    assert 1.0 / controller.kl_coef == pytest.approx(3.0, rel=0.05)


def _whole_pipeline(values: Tensor, kl: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    rewards = shape_rewards(scores, kl, mask, kl_coef=0.2)
    return whiten(estimate_advantages(values, rewards, mask, gamma=1.0, gae_lambda=0.95)[0], mask)


def test_padding_width_changes_nothing() -> None:
    """The same rows in a wider table give the same advantages."""
    generator = torch.Generator().manual_seed(1)
    values, kl = torch.randn(2, 2, 3, generator=generator)
    scores = tensor([0.3, -1.0])
    narrow = _whole_pipeline(values, kl, scores, MASK)
    wide = [torch.cat([t, torch.full((2, 4), 5.0)], dim=1) for t in (values, kl)]
    wide_mask = torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    result = _whole_pipeline(wide[0], wide[1], scores, wide_mask)
    torch.testing.assert_close(result[:, :3], narrow)
    assert result[:, 3:].abs().sum() == 0


def test_a_kl_that_is_no_number_leaves_the_controller_where_it_was() -> None:
    """The iteration's steps are skipped, and the next one needs a coefficient that is a number."""
    controller = KLController(0.05, target=3.0, horizon=100)
    controller.update(float("nan"), 10)
    assert controller.kl_coef == 0.05
