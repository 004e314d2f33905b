"""What must hold on the first rollout, where actor and reference are still the same model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rlhf import console
from step3_ppo.config import PPOConfig
from step3_ppo.optimise import steps_per_iteration

SAMPLER_MISMATCH_THAT_WARNS = 0.01


def check_start(metrics: Mapping[str, float], config: PPOConfig, dtype: torch.dtype) -> None:
    """Print a table of checks of the first iteration's metrics, and warn of each that fails.

    The KL to the reference is 0, and the probability ratio ρ of a first and only optimiser step is 1, within 1e-5 in
    fp32 and 2e-2 otherwise; the sampler's probabilities are near those of the training weights.
    """
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    checks = [("KL to the reference, nats per token", abs(metrics["ppo/kl_k1"]), tolerance)]
    approx_kl = metrics.get("ppo/approx_kl", math.nan)
    if not math.isnan(approx_kl) and steps_per_iteration(config) == 1:
        checks.append(("approx_kl of the first step (ρ = 1)", abs(approx_kl), tolerance))
    mismatch = metrics["ppo/sampler_mismatch"]
    checks.append(("sampler against training weights, mean |Δp|", mismatch, SAMPLER_MISMATCH_THAT_WARNS))
    rows = [[name, f"{value:.2e}", f"{bound:.0e}", "✓" if value <= bound else "✗"] for name, value, bound in checks]
    console.table("checks of the first iteration", ["check", "value", "at most", ""], rows)
    mean, std = metrics["ppo/scores_mean"], metrics["ppo/scores_std"]
    console.say(f"scores of the first rollout: mean {mean:.3f}, std {std:.3f}")
    for name, value, bound in checks:
        if not value <= bound:
            console.warn(
                f"{name} is {value:.2e}, above {bound:.0e}: the roles do not agree as they should at the start"
            )
