"""The pairwise loss and the held-out figures of a reward model, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import tensor

from step2_reward.loss import calibration_error, held_out_figures, pairwise_losses


def test_loss_of_a_pair() -> None:
    """−log σ(1 − 0) = log(1 + e⁻¹) = 0.3133; equal scores: log 2; a margin of 1 takes the lead away again."""
    chosen, rejected = tensor([1.0, 2.0, 1.0]), tensor([0.0, 2.0, 0.0])
    losses = pairwise_losses(chosen, rejected, tensor([0.0, 0.0, 1.0]))
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2), math.log(2)])
    assert losses[0].item() == pytest.approx(0.3133, abs=1e-4)


def test_loss_of_a_hopeless_pair_is_finite() -> None:
    assert pairwise_losses(tensor([-500.0]), tensor([500.0])).item() == 1000.0


def test_gradient_pushes_the_pair_apart() -> None:
    """d/dchosen = −σ(rejected − chosen) = −σ(−1) = −0.2689, the opposite for rejected."""
    chosen, rejected = tensor([1.0], requires_grad=True), tensor([0.0], requires_grad=True)
    pairwise_losses(chosen, rejected).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-1 / (1 + math.e), rel=1e-5)
    assert rejected.grad.item() == -chosen.grad.item()


def test_calibration_error_by_hand() -> None:
    """p = 0.85 twice (both right: confidence 0.85, accuracy 1) and p = 0.35 once (wrong: confidence 0.65, accuracy 0).

    Bins of width 0.05: ⅔·|1 − 0.85| + ⅓·|0 − 0.65| = 0.1 + 0.21667. (p is off the edges of bins on purpose.)
    """
    p = torch.tensor([0.87, 0.87, 0.33], dtype=torch.float64)
    wanted = 2 / 3 * 0.13 + 1 / 3 * 0.67
    assert calibration_error(torch.logit(p)) == pytest.approx(wanted)


def test_calibration_of_a_sure_and_right_model_is_zero() -> None:
    assert calibration_error(tensor([100.0, 100.0])) == pytest.approx(0.0)  # confidence 1 falls in the last bin
    assert calibration_error(tensor([-100.0])) == pytest.approx(1.0)
    assert calibration_error(tensor([0.0])) == pytest.approx(0.5)  # a tie is not right, at confidence ½
    assert math.isnan(calibration_error(torch.zeros(0)))


def test_calibration_error_agrees_with_bins_made_by_numpy() -> None:
    """Guo et al. 2017, eq. 3, by numpy's digitize on 10 bins of [0.5, 1]."""
    rng = np.random.default_rng(0)
    differences = rng.normal(size=500) * 2
    p = 1 / (1 + np.exp(-differences))
    confidence, correct = np.maximum(p, 1 - p), p > 0.5
    bins = np.minimum(np.digitize(confidence, np.linspace(0.5, 1.0, 11)) - 1, 9)
    wanted = sum(
        abs(correct[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in range(10)
        if (bins == b).any()
    )
    assert calibration_error(torch.from_numpy(differences)) == pytest.approx(wanted)


def test_held_out_figures_by_hand() -> None:
    """Four pairs, differences 1, −1, 0 and 2: two right (a tie is wrong), mean margin ½."""
    chosen, rejected = tensor([1.0, 0.0, 3.0, 2.0]), tensor([0.0, 1.0, 3.0, 0.0])
    figures = held_out_figures(
        chosen,
        rejected,
        margins_B=torch.zeros(4),
        lengths_2B=torch.tensor([1.0, 0.0, 3.0, 2.0, 0.0, 1.0, 3.0, 0.0], dtype=torch.float64),
        sources=["a", "b", "b", "a"],
    )
    assert figures["reward/accuracy"] == 0.5
    assert figures["reward/margin"] == 0.5
    assert figures["reward/length_correlation"] == pytest.approx(1.0)  # lengths are the scores themselves
    assert (figures["reward/accuracy/a"], figures["reward/accuracy/b"]) == (1.0, 0.0)
    losses = [math.log(1 + math.exp(-d)) for d in (1, -1, 0, 2)]
    assert figures["reward/eval_loss"] == pytest.approx(sum(losses) / 4)


def test_held_out_figures_of_one_source_has_no_parts() -> None:
    figures = held_out_figures(
        tensor([1.0]), tensor([0.0]), margins_B=torch.zeros(1), lengths_2B=torch.tensor([2.0, 2.0]), sources=["a"]
    )
    assert not [name for name in figures if "/a" in name.removeprefix("reward/accuracy")]
    assert figures["reward/length_correlation"] == 0.0  # lengths that do not vary correlate with nothing
