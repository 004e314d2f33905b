"""PPO's clipped losses: worked by hand, their gradients, and against versions written from the papers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from step3_ppo.estimators import LossMean, Objective
from step3_ppo.losses import actor_loss, critic_loss, kl_loss, mean_count, mean_weights, sequence_actor_loss

# two responses, of 2 and of 1 token
MASK = tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [
        (1.0, 1.1, -1.1, -1.1),  # inside the range: −A·ρ, and dρ/dlogp = ρ
        (1.0, 1.5, -1.2, 0.0),  # a good token already likelier by more than 0.2: clipped, nothing to gain
        (1.0, 0.5, -0.5, -0.5),  # a good token that became unlikely: not clipped, it is pulled back
        (-1.0, 1.5, 1.5, 1.5),  # a bad token that became likelier: not clipped
        (-1.0, 0.5, 0.8, 0.0),  # a bad token already less likely by more than 0.2: clipped
        (-2.0, 1.0, 2.0, 2.0),
    ],
)
def test_actor_loss_of_one_token(advantage: float, ratio: float, loss: float, slope: float) -> None:
    new = tensor([math.log(ratio) - 3.0], requires_grad=True)
    result = actor_loss(new, tensor([-3.0]), tensor([advantage]), cliprange=0.2)
    result.loss_sum.backward()
    assert float(result.loss_sum.detach()) == pytest.approx(loss, rel=1e-5)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_actor_loss_sums_and_counts_what_is_clipped() -> None:
    """ρ = 1.5, 1.5, 1: −1.2 + 1.5 − 1 = −0.7; only the first is clipped; Σ(ρ − 1 − log ρ) = 2(½ − log 1.5)."""
    old = torch.zeros(3)
    result = actor_loss(tensor([1.5, 1.5, 1.0]).log(), old, tensor([1.0, -1.0, 1.0]), cliprange=0.2)
    assert float(result.loss_sum) == pytest.approx(-0.7)
    assert result.clipped == 1.0
    assert result.approx_kl_sum == pytest.approx(2 * (0.5 - math.log(1.5)), rel=1e-5)


def test_unmoved_weights_have_no_kl_and_clip_nothing() -> None:
    old = tensor([-0.1, -5.0])
    result = actor_loss(old.clone(), old, tensor([2.0, -1.0]), cliprange=0.2)
    assert (result.clipped, result.approx_kl_sum) == (0.0, 0.0)
    assert float(result.loss_sum) == -1.0


def test_a_wild_ratio_stays_finite() -> None:
    """log ρ = ±1000 is held at ±20, so neither the loss nor its gradient overflows."""
    new = tensor([1000.0, -1000.0], requires_grad=True)
    result = actor_loss(new, torch.zeros(2), tensor([-1.0, 1.0]), cliprange=0.2)
    result.loss_sum.backward()
    assert float(result.loss_sum.detach()) == pytest.approx(math.exp(20), rel=1e-5)
    assert new.grad is not None
    assert torch.isfinite(new.grad).all()


def test_nothing_counted_is_zero_with_a_backward() -> None:
    """A micro-batch without rows must still run a backward, or the ranks part ways."""
    new = torch.zeros(0, requires_grad=True)
    result = actor_loss(new, torch.zeros(0), torch.zeros(0), cliprange=0.2)
    result.loss_sum.backward()
    assert (float(result.loss_sum.detach()), result.clipped, result.approx_kl_sum) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "value, old, target, loss, slope",
    [
        (1.0, 0.0, 2.0, 1.62, 0.0),  # moved towards the target beyond the range: ½·1.8², the clipped one, no gradient
        (0.1, 0.0, 2.0, 0.5 * 1.9**2, -1.9),  # inside the range
        (1.0, 0.0, -1.0, 0.5 * 4.0, 2.0),  # moved away: (1 + 1)² > (0.2 + 1)², pulled back in full
        (3.0, 3.0, 3.0, 0.0, 0.0),
    ],
)
def test_critic_loss_of_one_token(value: float, old: float, target: float, loss: float, slope: float) -> None:
    values = tensor([value], requires_grad=True)
    result = critic_loss(values, tensor([old]), tensor([target]), cliprange_value=0.2)
    result.backward()
    assert float(result.detach()) == pytest.approx(loss, rel=1e-5)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


_numbers = st.lists(
    st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(-3, 3), st.floats(0.05, 0.5)), min_size=1, max_size=8
)


@given(_numbers)
def test_actor_loss_is_the_papers(tokens: list[tuple[float, float, float, float]]) -> None:
    """Schulman et al. 2017, eq. 7: maximise Σ min(ρA, clip(ρ, 1−ε, 1+ε)A), token by token in Python's floats."""
    epsilon = tokens[0][3]
    objective = 0.0
    for new, old, advantage, _ in tokens:
        ratio = math.exp(new - old)
        objective += min(ratio * advantage, min(max(ratio, 1 - epsilon), 1 + epsilon) * advantage)
    new, old, advantages = (torch.tensor([t[i] for t in tokens], dtype=torch.float64) for i in range(3))
    loss = actor_loss(new, old, advantages, cliprange=epsilon).loss_sum
    assert float(loss) == pytest.approx(-objective, rel=1e-9, abs=1e-9)


@given(_numbers)
def test_critic_loss_is_the_pessimistic_of_two(tokens: list[tuple[float, float, float, float]]) -> None:
    """Half the larger of the two squared errors; never below the unclipped one (Huang et al. 2024)."""
    limit = tokens[0][3]
    wanted = 0.0
    for value, old, target, _ in tokens:
        near = old + math.copysign(min(abs(value - old), limit), value - old)
        wanted += max((value - target) ** 2, (near - target) ** 2) / 2
    values, old, targets = (torch.tensor([t[i] for t in tokens], dtype=torch.float64) for i in range(3))
    assert float(critic_loss(values, old, targets, cliprange_value=limit)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


# --- relatives of PPO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "advantage, ratio, loss",
    [
        (1.0, 1.25, -1.25),  # within 1.28
        (1.0, 1.5, -1.28),  # clipped above at 1.28
        (-1.0, 0.5, 0.8),  # clipped below at 1 − 0.2, as ever
        (-1.0, 1.5, 1.5),
    ],
)
def test_the_range_above_one_may_be_wider(advantage: float, ratio: float, loss: float) -> None:
    result = actor_loss(
        tensor([math.log(ratio)]), tensor([0.0]), tensor([advantage]), cliprange=0.2, cliprange_high=0.28
    )
    assert float(result.loss_sum) == pytest.approx(loss)
    assert result.clipped == float(loss != pytest.approx(-advantage * ratio))


def test_the_ratio_of_a_whole_sequence_by_hand() -> None:
    """Log-ratios (0.1, 0.3) of a good response: ρ = e^0.4 = 1.4918, clipped to 1.2 → −1.2, no slope. A log-ratio of
    −0.1 of a bad one: ρ = 0.9048 → 0.9048, and so its slope. approx_kl is of tokens: Σ e^x − 1 − x."""
    new = tensor([0.1, 0.3, -0.1], requires_grad=True)
    result = sequence_actor_loss(new, torch.zeros(3), tensor([1.0, 1.0, -1.0]), MASK, cliprange=0.2)
    result.loss_sum.backward()
    assert float(result.loss_sum.detach()) == pytest.approx(-1.2 + math.exp(-0.1))
    assert result.clipped == 1
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, 0.0, math.exp(-0.1)])
    assert result.approx_kl_sum == pytest.approx(sum(math.exp(x) - 1 - x for x in (0.1, 0.3, -0.1)), rel=1e-5)


def test_each_token_of_a_sequence_gets_the_slope_of_the_whole() -> None:
    """ρ = e^(0.05 + 0.1) = 1.1618, A = 2: −2ρ at both tokens, so that a long response weighs as many tokens."""
    new = tensor([0.05, 0.1, 0.0], requires_grad=True)
    sequence_actor_loss(new, torch.zeros(3), tensor([2.0, 2.0, 0.0]), MASK, cliprange=0.2).loss_sum.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-2 * math.exp(0.15), -2 * math.exp(0.15), 0.0])


def test_no_rows_have_a_loss_of_zero_with_a_gradient() -> None:
    """A rank without a row of a micro-batch still runs its backward, or the others wait for it."""
    new = torch.zeros(0, requires_grad=True)
    nothing = torch.zeros(0, 3, dtype=torch.bool)
    result = sequence_actor_loss(new, torch.zeros(0), torch.zeros(0), nothing, cliprange=0.2)
    (result.loss_sum + kl_loss(new, torch.zeros(0), mean_weights(nothing, Objective(loss_mean="sequence")))).backward()
    assert float(result.loss_sum.detach()) == result.clipped == result.approx_kl_sum == 0.0
    assert new.grad is not None


def test_k3_by_hand() -> None:
    """r = ref − new = 0.5 → e^0.5 − 1.5 = 0.14872; −0.5 → e^−0.5 − 0.5 = 0.10653; slope by new: 1 − e^r."""
    new = tensor([-1.0, -1.0, -1.0], requires_grad=True)
    ref = tensor([-0.5, -1.5, -1.0])
    found = kl_loss(new, ref)
    found.backward()
    assert float(found.detach()) == pytest.approx(0.14872 + 0.10653, abs=1e-5)
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([1 - math.exp(0.5), 1 - math.exp(-0.5), 0.0])
    assert float(kl_loss(new, ref, tensor([1.0, 0.5, 1.0])).detach()) == pytest.approx(0.14872 + 0.10653 / 2, abs=1e-5)


@pytest.mark.parametrize(
    "loss_mean, wanted",
    [
        ("token", (1 + 2 + 6) / 3),
        ("sequence", ((1 + 2) / 2 + 6) / 2),
        ("constant", (1 + 2 + 6) / (2 * 4)),
    ],
)
def test_three_means_of_a_loss_by_hand(loss_mean: LossMean, wanted: float) -> None:
    """Losses (1, 2) and (6) of two responses that may have 4 tokens each."""
    losses, objective = tensor([1.0, 2.0, 6.0]), Objective(loss_mean=loss_mean)
    weights = mean_weights(MASK, objective)
    total = float((losses if weights is None else losses * weights).sum())
    assert total / mean_count(MASK, objective, longest=4) == pytest.approx(wanted)
    result = actor_loss(torch.zeros(3), torch.zeros(3), -losses, cliprange=0.2, weights_N=weights)
    assert float(result.loss_sum) / mean_count(MASK, objective, longest=4) == pytest.approx(wanted)


def test_one_loss_for_a_sequence_is_not_divided_by_its_length() -> None:
    objective = Objective(loss_mean="sequence", ratio="sequence")
    assert mean_weights(MASK, objective) is None
    assert mean_count(MASK, objective, longest=4) == 2
