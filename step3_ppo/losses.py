"""The clipped losses of PPO. Pure functions over the counted tokens of a micro-batch.

N counted tokens, flat. Each returns a sum, because the mean is taken over the whole optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


@dataclass
class ActorLoss:
    """Sums over N: the loss (with its gradient), clipped tokens, approx_kl = Σ (ρ − 1) − log ρ."""

    loss_sum: Tensor
    clipped: float
    approx_kl_sum: float


def actor_loss(new_logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, *, cliprange: float) -> ActorLoss:
    """Σ max(−A·ρ, −A·clip(ρ, 1 ± cliprange)), ρ = exp(new − old) (Schulman et al. 2017, eq. 7).

    A = 1, ρ = 1.5, cliprange 0.2 → −1.2 (clipped); A = −1, ρ = 1.5 → 1.5 (not clipped).
    """
    log_ratio = (new_logprobs_N - old_logprobs_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    plain = -advantages_N * ratio
    clipped = -advantages_N * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        clipped_tokens = float((clipped > plain).sum())
        approx_kl_sum = float((ratio.double() - 1 - log_ratio.double()).sum())
    return ActorLoss(torch.maximum(plain, clipped).sum(), clipped_tokens, approx_kl_sum)


def critic_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, cliprange_value: float) -> Tensor:
    """½ Σ max((v − R)², (clip(v, v_old ± cliprange_value) − R)²).

    v = 1, v_old = 0, R = 2, cliprange_value 0.2 → ½ · max(1, 1.8²) = 1.62.
    """
    near = torch.clamp(values_N, old_values_N - cliprange_value, old_values_N + cliprange_value)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (near - returns_N) ** 2).sum()
