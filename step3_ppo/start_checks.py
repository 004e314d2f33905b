"""What must hold on the first rollout, where actor and reference are still the same model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rlhf import console

SAMPLER_MISMATCH_THAT_WARNS = 0.01


def check_start(metrics: Mapping[str, float], first_step: Mapping[str, float], dtype: torch.dtype) -> None:
    """Print a table of checks of the first iteration's metrics, and warn of each that fails.

    The KL to the reference is 0, and the probability ratio ρ of the first optimiser step (its metrics are `first_step`)
    is 1, within 1e-5 in fp32 and 2e-2 otherwise; the sampler's probabilities are near those of the training weights.
    """
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    agree = "the roles do not agree as they should at the start"
    checks = [
        ("KL to the reference, nats per token", abs(metrics["ppo/kl_k1"]), tolerance, agree),
        (
            "sampler against training weights, mean |Δp|",
            metrics["ppo/sampler_mismatch"],
            SAMPLER_MISMATCH_THAT_WARNS,
            agree,
        ),
    ]
    approx_kl = abs(first_step.get("ppo/approx_kl", math.nan))
    if not math.isnan(approx_kl):  # there is none while only the critic learns
        # The others compare the actor in evaluation mode. If these hold, training mode makes the difference.
        why = agree
        if all(value <= bound for _, value, bound, _ in checks):
            why = (
                "the same weights give other probabilities in training mode, so something in this model is random "
                "there, such as dropout or the noise of a router"
            )
        checks.insert(1, ("approx_kl of the first step (ρ = 1)", approx_kl, tolerance, why))
    rows = [[name, f"{value:.2e}", f"{bound:.0e}", "✓" if value <= bound else "✗"] for name, value, bound, _ in checks]
    console.table("checks of the first iteration", ["check", "value", "at most", ""], rows)
    mean, std = metrics["ppo/scores_mean"], metrics["ppo/scores_std"]
    console.say(f"scores of the first rollout: mean {mean:.3f}, std {std:.3f}")
    for name, value, bound, why in checks:
        if not value <= bound:
            console.warn(f"{name} is {value:.2e}, above {bound:.0e}: {why}")
