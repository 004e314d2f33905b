"""The pairwise loss, and a reward model's figures on held-out pairs. Pure functions of scores.

B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models.tensors import correlation

CALIBRATION_BINS = 10


def pairwise_losses(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | float = 0.0) -> Tensor:
    """−log σ(chosen − rejected − margin) of each pair (Ouyang et al. 2022, eq. 1): scores 1 and 0 → 0.3133."""
    return -F.logsigmoid(chosen_B - rejected_B - margin_B)


def calibration_error(difference_B: Tensor) -> float:
    """Expected calibration error of p = σ(chosen − rejected).

    Confidence is max(p, 1 − p), a pair is correct when p > 0.5; 10 equal bins on [0.5, 1], each weighted by its share
    of |accuracy − mean confidence| (Guo et al. 2017).
    """
    if not len(difference_B):
        return math.nan
    p = torch.sigmoid(difference_B.double())
    confidence, correct = torch.maximum(p, 1 - p), (p > 0.5).double()
    bins = ((confidence - 0.5) * 2 * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    error = 0.0
    for index in range(CALIBRATION_BINS):
        inside = bins == index
        if inside.any():
            error += float(inside.double().mean() * (correct[inside].mean() - confidence[inside].mean()).abs())
    return error


def held_out_figures(
    chosen_B: Tensor, rejected_B: Tensor, *, margins_B: Tensor, lengths_2B: Tensor, sources: Sequence[str]
) -> dict[str, float]:
    """A reward model's figures on held-out pairs: loss, accuracy (a tie is wrong), mean margin, calibration error,
    correlation of score with length in tokens over all 2B responses (chosen, then rejected), and the accuracy of each
    source if there are several."""
    difference = chosen_B - rejected_B
    right = (difference > 0).double()
    figures = {
        "reward/eval_loss": float(pairwise_losses(chosen_B, rejected_B, margins_B).mean()),
        "reward/accuracy": float(right.mean()),
        "reward/margin": float(difference.mean()),
        "reward/length_correlation": correlation(torch.cat([chosen_B, rejected_B]), lengths_2B),
        "reward/calibration_error": calibration_error(difference),
    }
    names = sorted(set(sources))
    if len(names) > 1:
        for name in names:
            inside = torch.tensor([source == name for source in sources])
            figures[f"reward/accuracy/{name}"] = float(right[inside].mean())
    return figures
