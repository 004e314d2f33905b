"""The losses on pairs, and the figures of a policy on held-out pairs. Pure functions of log-probabilities.

B pairs, N tokens. The log-ratio of a response is log π − log π_ref of its tokens, end token included: their sum, or
their mean where a loss is normalised by length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_losses(z_B: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """−(1 − ε) log σ(z) − ε log σ(−z) of each pair (Rafailov et al. 2023, eq. 7; Mitchell 2023 for ε, the share of
    labels that are taken to be wrong). z = β · (log-ratio of chosen − log-ratio of rejected): 0.3 → 0.5544, with
    ε = 0.1 → 0.5844."""
    return -(1 - label_smoothing) * F.logsigmoid(z_B) - label_smoothing * F.logsigmoid(-z_B)


def ipo_losses(z_B: Tensor, *, beta: float) -> Tensor:
    """(difference of the log-ratios − 1 / (2β))² of each pair (Azar et al. 2023, eq. 17), z = β · difference. The
    log-ratios are means over tokens: 1.0 and 0.5 with β = 0.5 → (0.5 − 1)² = 0.25."""
    return (z_B / beta - 0.5 / beta).square()


def kl_estimates(ref_N: Tensor, new_N: Tensor) -> Tensor:
    """e^r − 1 − r with r = new − ref of each token, in nats: under tokens of the reference its mean is the KL from the
    reference to the policy (Schulman 2020, k3). Never below 0: r = −1 → 0.3679."""
    r_N = new_N - ref_N
    return r_N.exp() - 1 - r_N


def held_out_figures(rewards_B2: Tensor, losses_B: Tensor, kl_B: Tensor, *, sources: Sequence[str]) -> dict[str, float]:
    """A policy's figures on held-out pairs. `rewards_B2` are β · log-ratio of the chosen and the rejected response,
    `kl_B` the estimates of the KL summed over the tokens of a pair's two responses, and halved.

    Accuracy is the share of the pairs with z > 0; a tie is wrong. With several sources each has its own.
    """
    chosen_B, rejected_B = rewards_B2.double().unbind(dim=1)
    right_B = (chosen_B > rejected_B).double()
    figures = {
        "dpo/eval_loss": float(losses_B.double().mean()),
        "dpo/accuracy": float(right_B.mean()),
        "dpo/margin": float((chosen_B - rejected_B).mean()),
        "dpo/chosen_reward": float(chosen_B.mean()),
        "dpo/rejected_reward": float(rejected_B.mean()),
        "dpo/kl": float(kl_B.double().mean()),
    }
    names = sorted(set(sources))
    if len(names) > 1:
        for name in names:
            inside = torch.tensor([source == name for source in sources])
            figures[f"dpo/accuracy/{name}"] = float(right_B[inside].mean())
    return figures
