"""The clipped losses of PPO and its relatives. Pure functions over the counted tokens of a micro-batch.

B sequences, R response tokens, N counted tokens (flat, row by row). Each returns a sum, because the mean is taken over
the whole optimiser step: `mean_weights` gives the weight of each token, `mean_count` what the sum is divided by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from step3_ppo.estimators import Objective

LOG_RATIO_LIMIT = 20.0


@dataclass
class ActorLoss:
    """Sums over N: the loss (with its gradient), clipped ratios (of tokens, or of sequences), approx_kl =
    Σ (ρ − 1) − log ρ over tokens."""

    loss_sum: Tensor
    clipped: float
    approx_kl_sum: float


def actor_loss(
    new_logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    cliprange: float,
    cliprange_high: float | None = None,
    weights_N: Tensor | None = None,
) -> ActorLoss:
    """Σ w · max(−A·ρ, −A·clip(ρ, 1 − cliprange, 1 + cliprange_high)), ρ = exp(new − old) (Schulman et al. 2017, eq. 7).

    Without `cliprange_high` the range is as wide above 1 as below it; without `weights_N` all weights are 1.
    A = 1, ρ = 1.5, cliprange 0.2 → −1.2 (clipped); A = −1, ρ = 1.5 → 1.5 (not clipped).
    """
    log_ratio = _limited(new_logprobs_N - old_logprobs_N)
    loss_N, clipped = _clipped(log_ratio, advantages_N, cliprange, cliprange_high)
    loss_sum = (loss_N if weights_N is None else loss_N * weights_N).sum()
    return ActorLoss(loss_sum, clipped, _approx_kl(log_ratio))


def sequence_actor_loss(
    new_logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    response_mask_BR: Tensor,
    *,
    cliprange: float,
    cliprange_high: float | None = None,
) -> ActorLoss:
    """The same with one ratio for each sequence, that of its whole probability, and so one loss (Ahmadian et al. 2024).

    All tokens of a sequence must have the same advantage. `response_mask_BR` tells which tokens are of one sequence.
    A = 1, log-ratios [0.1, 0.3] → ρ = e^0.4 = 1.49, clipped to 1.2 → −1.2.
    """
    difference_N = new_logprobs_N - old_logprobs_N
    # a padded table and its sums by row: the order of the additions is always the same, as scattered sums are not
    sums_B = _table(difference_N, response_mask_BR).sum(dim=1)
    advantages_B = _table(advantages_N, response_mask_BR)[:, :1].sum(dim=1)
    loss_B, clipped = _clipped(_limited(sums_B), advantages_B, cliprange, cliprange_high)
    return ActorLoss(loss_B.sum(), clipped, _approx_kl(_limited(difference_N)))


def kl_loss(new_logprobs_N: Tensor, ref_logprobs_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Σ w · k3, k3 = e^r − 1 − r with r = ref − new, in nats (Shao et al. 2024, eq. 4): never negative, and its mean
    over samples is the KL to the reference. r = 0.5 → 0.1487."""
    r_N = _limited(ref_logprobs_N - new_logprobs_N)
    k3_N = torch.expm1(r_N) - r_N
    return (k3_N if weights_N is None else k3_N * weights_N).sum()


def mean_weights(response_mask_BR: Tensor, objective: Objective) -> Tensor | None:
    """The weight of each counted token in the sums of a loss, [N]; None where all are 1.

    For a mean over sequences of the means over their tokens each weighs 1 / length: lengths 2 and 1 → [½, ½, 1]. A
    ratio of whole sequences has one loss for each, which is not divided by the length.
    """
    if objective.loss_mean != "sequence" or objective.ratio == "sequence":
        return None
    lengths_B = response_mask_BR.sum(dim=1, keepdim=True).clamp(min=1)
    return (response_mask_BR / lengths_B)[response_mask_BR]


def mean_count(response_mask_BR: Tensor, objective: Objective, *, longest: int) -> int:
    """What the sum over a whole optimiser step is divided by: its counted tokens, its sequences, or the tokens that
    they could have, `longest` each (Liu et al. 2025). Lengths 2 and 1, longest 4 → 3, 2 or 8."""
    rows = len(response_mask_BR)
    return {"token": int(response_mask_BR.sum()), "sequence": rows, "constant": rows * longest}[objective.loss_mean]


def _clipped(
    log_ratio: Tensor, advantages: Tensor, cliprange: float, cliprange_high: float | None
) -> tuple[Tensor, float]:
    """The loss of each ratio, and how many of them are clipped."""
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    above = cliprange if cliprange_high is None else cliprange_high
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + above)
    return torch.maximum(plain, clipped), float((clipped > plain).sum())


def _limited(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _approx_kl(log_ratio_N: Tensor) -> float:
    with torch.no_grad():
        return float((log_ratio_N.exp().double() - 1 - log_ratio_N.double()).sum())


def _table(values_N: Tensor, response_mask_BR: Tensor) -> Tensor:
    """Counted entries in their places, 0 elsewhere: [B, R]."""
    return values_N.new_zeros(response_mask_BR.shape).masked_scatter(response_mask_BR, values_N)


def critic_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, cliprange_value: float) -> Tensor:
    """½ Σ max((v − R)², (clip(v, v_old ± cliprange_value) − R)²).

    v = 1, v_old = 0, R = 2, cliprange_value 0.2 → ½ · max(1, 1.8²) = 1.62.
    """
    near = torch.clamp(values_N, old_values_N - cliprange_value, old_values_N + cliprange_value)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (near - returns_N) ** 2).sum()
