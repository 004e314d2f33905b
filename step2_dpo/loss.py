"""The losses on pairs and on single responses, and a policy's figures on held-out ones. Pure functions of
log-probabilities.

B pairs or responses, N tokens. The log-ratio of a response is log π − log π_ref of its tokens, end token included:
their sum, or their mean where a loss is normalised by length.
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


def kto_losses(
    ratios_B: Tensor,
    desirable_B: Tensor,
    *,
    baseline: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """λ_D (1 − σ(β(h − z0))) of desirable responses, λ_U (1 − σ(β(z0 − h))) of the others (Ethayarajh et al. 2024,
    eq. 8); h is the log-ratio, `baseline` is z0 ≥ 0. h = 2, z0 = 1, β = 0.1: 1 − σ(0.1) = 0.4750 if it is desirable,
    else 0.5250."""
    signs_B = torch.where(desirable_B, 1.0, -1.0).to(ratios_B)
    weights_B = torch.where(desirable_B, desirable_weight, undesirable_weight).to(ratios_B)
    return weights_B * torch.sigmoid(-signs_B * beta * (ratios_B - baseline))


def baseline_of(ratio_sum: float, count: int) -> float:
    """z0 of a step: the mean log-ratio of its mismatched responses, an estimate of the KL to the reference, and never
    below 0; 0 without any. A sum that is not a number gives none."""
    mean = ratio_sum / max(count, 1)
    return 0.0 if mean <= 0 else mean


def kl_estimates(ref_N: Tensor, new_N: Tensor) -> Tensor:
    """r² / 2 with r = new − ref of each token, in nats (Schulman 2020, k2): near the reference the KL between the two,
    whichever of them the tokens come from; r = −1 → 0.5. Held-out responses come from neither, where k1 may be below 0
    and k3, e^r − 1 − r, counts 3,000 nats for one token that the reference finds e^8 times less likely."""
    return (new_N - ref_N).square() / 2


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
    return figures | {
        f"dpo/accuracy/{name}": float(right_B[inside].mean()) for name, inside in _inside_each(sources).items()
    }


def unpaired_figures(
    rewards_B: Tensor, desirable_B: Tensor, losses_B: Tensor, kl_B: Tensor, *, baseline: float, sources: Sequence[str]
) -> dict[str, float]:
    """A policy's figures on held-out responses: `rewards_B` are β · log-ratio, `kl_B` the estimates of the KL summed
    over the tokens of a response, `baseline` is z0.

    Accuracy is `ordered` of the rewards. Where all responses are good, or all bad, what needs both is left out.
    """
    means = {
        name: float(rewards_B[mask_B].double().mean())
        for name, mask_B in (("chosen", desirable_B), ("rejected", ~desirable_B))
        if mask_B.any()
    }
    figures = {"dpo/eval_loss": float(losses_B.double().mean())}
    if len(means) == 2:
        figures |= {
            "dpo/accuracy": ordered(rewards_B, desirable_B),
            "dpo/margin": means["chosen"] - means["rejected"],
        }
    figures |= {f"dpo/{name}_reward": mean for name, mean in means.items()}
    figures |= {"dpo/kl": float(kl_B.double().mean()), "dpo/eval_baseline": baseline}
    return figures | {
        f"dpo/accuracy/{name}": ordered(rewards_B[inside], desirable_B[inside])
        for name, inside in _inside_each(sources).items()
        if 0 < int(desirable_B[inside].sum()) < int(inside.sum())
    }


def ordered(values_B: Tensor, desirable_B: Tensor) -> float:
    """The share of all couples of a desirable and another response whose desirable one has the larger value; a tie is
    wrong. Values 3 and 1 of desirable ones, 2 and 1 of others: 2 of 4."""
    good, bad = values_B[desirable_B].contiguous(), values_B[~desirable_B].sort().values
    return float(torch.searchsorted(bad, good).double().mean() / len(bad))


def _inside_each(sources: Sequence[str]) -> dict[str, Tensor]:
    """Which rows are of each source, if there are several."""
    names = sorted(set(sources))
    return {name: torch.tensor([source == name for source in sources]) for name in names if len(names) > 1}
