"""From scores and log-probabilities to rewards, advantages and returns. Pure functions.

B sequences, R response tokens. `response_mask_BR` is True on the tokens that count, which are the first of each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def normalise_scores(scores_B: Tensor, *, mean: float, std: float, clip: float) -> Tensor:
    """(score − mean) / std, clipped to ±clip: 7 with mean 1, std 2, clip 2 → 2."""
    return ((scores_B - mean) / std).clamp(-clip, clip)


def kl_per_token(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, response_mask_BR: Tensor) -> Tensor:
    """k1 = logprob − ref_logprob in nats, 0 where not counted: the unbiased estimate used in the rewards."""
    return torch.where(response_mask_BR, logprobs_BR - ref_logprobs_BR, 0.0)


def kl_estimates(kl_BR: Tensor, response_mask_BR: Tensor) -> dict[str, float]:
    """Means per token of k1, k2 = ½·k1² and k3 = e^(−k1) − 1 + k1 (Schulman 2020), in nats."""
    k1 = kl_BR[response_mask_BR].double()
    if not len(k1):
        return {"k1": 0.0, "k2": 0.0, "k3": 0.0}
    return {"k1": float(k1.mean()), "k2": float((k1**2 / 2).mean()), "k3": float((torch.expm1(-k1) + k1).mean())}


def shape_rewards(scores_B: Tensor, kl_BR: Tensor, response_mask_BR: Tensor, *, kl_coef: float) -> Tensor:
    """−kl_coef · kl at every counted token, and the score on top at the last one (Ziegler et al. 2019, eq. 2).

    Scores [1], kl [0.5, 0.1], kl_coef 0.1 → [−0.05, 0.99]. A row without counted tokens gets no score.
    """
    rewards_BR = -kl_coef * kl_BR
    last_B = response_mask_BR.sum(dim=1) - 1
    has_tokens = (last_B >= 0).to(rewards_BR.dtype)
    rewards_BR = rewards_BR.scatter_add(
        1, last_B.clamp(min=0)[:, None], (scores_B.to(rewards_BR) * has_tokens)[:, None]
    )
    return torch.where(response_mask_BR, rewards_BR, 0.0)


def estimate_advantages(
    values_BR: Tensor, rewards_BR: Tensor, response_mask_BR: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns, both [B, R].

    δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1}, returns = A + V; beyond the last counted token all is 0.
    Values [0.5, 0.2], rewards [0, 1], γ = λ = 1 → advantages [0.5, 0.8], returns [1, 1].
    """
    values_BR = torch.where(response_mask_BR, values_BR, 0.0)
    rewards_BR = torch.where(response_mask_BR, rewards_BR, 0.0)
    advantages_BR = torch.zeros_like(values_BR)
    following_value = following_advantage = torch.zeros_like(values_BR[:, 0])
    for t in reversed(range(values_BR.shape[1])):
        delta = rewards_BR[:, t] + gamma * following_value - values_BR[:, t]
        advantages_BR[:, t] = delta + gamma * gae_lambda * following_advantage
        following_value, following_advantage = values_BR[:, t], advantages_BR[:, t]
    return advantages_BR, torch.where(response_mask_BR, advantages_BR + values_BR, 0.0)


def explained_variance(values_BR: Tensor, returns_BR: Tensor, response_mask_BR: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns) over the counted tokens; 0 if all returns are equal."""
    values, returns = values_BR[response_mask_BR].double(), returns_BR[response_mask_BR].double()
    spread = float(returns.var(unbiased=False)) if len(returns) else 0.0
    return 1 - float((returns - values).var(unbiased=False)) / spread if spread > 0 else 0.0


@dataclass
class KLController:
    """`kl_coef` of the next iteration: fixed, or pulled towards `target` nats per sequence (Ziegler et al. 2019, §2.2).

    coef ·= 1 + clip(KL / target − 1, ±0.2) · n / horizon, n being the sequences of the iteration.
    """

    kl_coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl_per_sequence: float, sequences: int) -> None:
        """After an iteration's rewards are formed: its KL, summed over a sequence and averaged over `sequences`, in
        nats. One that is not finite changes nothing."""
        if self.target is not None and math.isfinite(kl_per_sequence):  # a NaN would stay for ever
            error = min(max(kl_per_sequence / self.target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * sequences / self.horizon
