"""The losses on pairs and on single responses, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from step2_dpo.loss import (
    baseline_of,
    dpo_losses,
    held_out_figures,
    ipo_losses,
    kl_estimates,
    kto_losses,
    ordered,
    unpaired_figures,
)


def test_a_pair_by_hand() -> None:
    """π_c = −10, ref_c = −12, π_r = −14, ref_r = −13, β = 0.1: z = 0.1 · (2 − (−1)) = 0.3."""
    z_B = 0.1 * torch.tensor([(-10.0 + 12.0) - (-14.0 + 13.0)])
    assert dpo_losses(z_B).item() == pytest.approx(0.5544, abs=5e-5)
    assert dpo_losses(z_B).item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    # a tenth of −log σ(−0.3) = 0.8544 in place of a tenth of 0.5544
    assert dpo_losses(z_B, label_smoothing=0.1).item() == pytest.approx(0.9 * 0.554355 + 0.1 * 0.854355, abs=1e-5)


def test_ipo_pulls_the_difference_to_a_half_of_one_over_beta() -> None:
    z_B = 0.5 * torch.tensor([0.5, 1.0, 1.5])
    assert ipo_losses(z_B, beta=0.5).tolist() == pytest.approx([0.25, 0.0, 0.25])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_of_dpo(smoothing: float) -> None:
    """d loss / dz = σ(z) − (1 − ε): it vanishes where the policy is as sure as the labels are."""
    z_B = torch.tensor([-50.0, -0.7, 0.0, 0.3, math.log(4), 50.0], requires_grad=True)
    dpo_losses(z_B, label_smoothing=smoothing).sum().backward()
    assert z_B.grad is not None
    wanted = [1 / (1 + math.exp(-z)) - (1 - smoothing) for z in z_B.tolist()]
    assert z_B.grad.tolist() == pytest.approx(wanted, abs=1e-6)
    if smoothing:
        assert z_B.grad[4].item() == pytest.approx(0.0, abs=1e-6)  # σ(log 4) = 0.8


def test_the_gradient_of_ipo() -> None:
    """2 · (z/β − 1/(2β)) / β: with β = 0.1 and z = 0.3, 2 · (3 − 5) / 0.1 = −40."""
    z_B = torch.tensor([0.3], requires_grad=True)
    ipo_losses(z_B, beta=0.1).sum().backward()
    assert z_B.grad is not None
    assert z_B.grad.item() == pytest.approx(-40.0, rel=1e-5)


def test_large_differences_are_finite() -> None:
    z_B = torch.tensor([-2000.0, 2000.0])
    assert dpo_losses(z_B, label_smoothing=0.1).tolist() == pytest.approx([1800.0, 200.0])


def test_kl_estimates_by_hand() -> None:
    """r = −1: 0.5; r = 0: 0; and near the reference the mean is the KL under tokens of either model."""
    found = kl_estimates(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0]))
    assert found.tolist() == [0.5, 0.0]
    ref, new = torch.tensor([0.7, 0.3]), torch.tensor([0.68, 0.32])
    exact = float((ref * (ref.log() - new.log())).sum())
    for tokens_of in (ref, new):
        assert float((tokens_of * kl_estimates(ref.log(), new.log())).sum()) == pytest.approx(exact, rel=0.05)


def test_a_kl_estimate_of_an_unlikely_token_does_not_explode() -> None:
    """With k3, responses that the reference had hardly seen gave a KL of 4832 nats after two hundred steps."""
    assert float(kl_estimates(torch.tensor(-12.0), torch.tensor(-4.0))) == 32.0


def test_held_out_figures_by_hand() -> None:
    """Three pairs: right, a tie, wrong; the first two of one source."""
    rewards_B2 = torch.tensor([[0.2, -0.1], [0.1, 0.1], [-0.4, 0.1]])
    found = held_out_figures(
        rewards_B2, torch.tensor([0.5, 0.7, 0.9]), torch.tensor([1.0, 2.0, 6.0]), sources=["a", "a", "b"]
    )
    assert found == pytest.approx(
        {
            "dpo/eval_loss": 0.7, "dpo/accuracy": 1 / 3, "dpo/margin": (0.3 + 0 - 0.5) / 3,
            "dpo/chosen_reward": -0.1 / 3, "dpo/rejected_reward": 0.1 / 3, "dpo/kl": 3.0,
            "dpo/accuracy/a": 0.5, "dpo/accuracy/b": 0.0,
        }
    )  # fmt: skip
    assert "dpo/accuracy/a" not in held_out_figures(rewards_B2, torch.ones(3), torch.ones(3), sources=["a"] * 3)


def test_a_response_by_hand() -> None:
    """h = 2, z0 = 1, β = 0.1: 1 − σ(0.1) if it is desirable, 1 − σ(−0.1) if not; weights multiply."""
    ratios_B, good_B = torch.tensor([2.0, 2.0]), torch.tensor([True, False])
    assert kto_losses(ratios_B, good_B, baseline=1.0, beta=0.1).tolist() == pytest.approx([0.47502, 0.52498], abs=1e-5)
    weighted = kto_losses(ratios_B, good_B, baseline=1.0, beta=0.1, desirable_weight=2, undesirable_weight=0.5)
    assert weighted.tolist() == pytest.approx([0.95004, 0.26249], abs=1e-5)


def test_the_responses_of_a_pair_by_hand() -> None:
    """π_c − ref_c = 2, π_r − ref_r = −1, β = 0.1, z0 = 0.5: 1 − σ(0.15) and 1 − σ(0.15), as both are 1.5 away."""
    found = kto_losses(torch.tensor([2.0, -1.0]), torch.tensor([True, False]), baseline=0.5, beta=0.1)
    assert found.tolist() == pytest.approx([1 - 1 / (1 + math.exp(-0.15))] * 2, abs=1e-6)


def test_the_gradient_of_kto() -> None:
    """d loss / dh = ∓ λ β σ(x)(1 − σ(x)): largest at z0, and none far from it on either side."""
    ratios_B = torch.tensor([1.0, 1.0, 2000.0, -2000.0], requires_grad=True)
    good_B = torch.tensor([True, False, True, False])
    kto_losses(ratios_B, good_B, baseline=1.0, beta=0.4, desirable_weight=3.0).sum().backward()
    assert ratios_B.grad is not None
    assert ratios_B.grad.tolist() == pytest.approx([-3 * 0.4 / 4, 0.4 / 4, 0.0, 0.0])


def test_the_baseline_is_a_mean_and_never_below_0() -> None:
    assert baseline_of(3.0, 4) == 0.75
    assert baseline_of(-3.0, 4) == 0.0
    assert baseline_of(0.0, 0) == 0.0
    assert math.isnan(baseline_of(math.nan, 4))  # so that the step is skipped


def test_the_order_of_responses_by_hand() -> None:
    """3 is above 1 and 2, 1 is above neither: 1 ties."""
    values_B, good_B = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert ordered(values_B, good_B) == pytest.approx(2 / 4)


def test_figures_of_single_responses_by_hand() -> None:
    rewards_B, good_B = torch.tensor([0.3, -0.1, 0.1, -0.3]), torch.tensor([True, False, False, True])
    sources = ["a", "a", "b", "b"]
    found = unpaired_figures(
        rewards_B, good_B, torch.full((4,), 0.4), torch.tensor([1.0, 2.0, 3.0, 4.0]), baseline=0.2, sources=sources
    )
    assert found == pytest.approx(
        {
            "dpo/eval_loss": 0.4, "dpo/accuracy": 0.5, "dpo/margin": 0.0, "dpo/chosen_reward": 0.0,
            "dpo/rejected_reward": 0.0, "dpo/kl": 2.5, "dpo/eval_baseline": 0.2,
            "dpo/accuracy/a": 1.0, "dpo/accuracy/b": 0.0,
        },
        abs=1e-7,
    )  # fmt: skip
    alone = unpaired_figures(rewards_B[:1], good_B[:1], torch.ones(1), torch.ones(1), baseline=0.0, sources=["a"])
    assert sorted(alone) == ["dpo/chosen_reward", "dpo/eval_baseline", "dpo/eval_loss", "dpo/kl"]
