"""A rollout with its measurements, and an experience that is ready to optimise.

B sequences of the whole rollout batch, R response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.models.tensors import correlation, whiten
from step3_ppo.advantages import explained_variance, kl_estimates, kl_per_token, shape_rewards
from step3_ppo.config import PPOConfig
from step3_ppo.estimators import Rewarded, uniform_groups
from step3_ppo.rollout import Rollout


@dataclass
class Measured:
    """A rollout and the roles' outputs for it, on the CPU, the same on every rank; 0 where nothing counts.

    Log-probabilities of actor (`old`) and reference, and entropy, in nats; the critic's values, None without a critic;
    `scores_B` are raw. Of a list of rewards they are the weighted sum, and `parts` the raw scores of each by name, NaN
    where it has none.
    """

    rollout: Rollout
    response_mask_BR: Tensor
    old_logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    entropy_BR: Tensor
    values_BR: Tensor | None
    scores_B: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.rollout)

    def counted(self, table_BR: Tensor, rows: list[int]) -> Tensor:
        """The counted entries of a table in the order of a micro-batch's tokens: [N]."""
        return table_BR[rows][self.response_mask_BR[rows]]

    def is_finite(self) -> bool:
        """Whether every score, log-probability and value is a number that can be learned from."""
        tables = (self.scores_B, self.old_logprobs_BR, self.ref_logprobs_BR, self.values_BR)
        return all(bool(torch.isfinite(table).all()) for table in tables if table is not None)


@dataclass
class Experience(Measured):
    """The measurements, and the rewards, advantages and returns that follow from them.

    `final_scores_B` are normalised and clipped, minus the penalty for a missing end token; KL in nats; advantages are
    as the loss takes them; `returns_BR` are what a critic learns, None from an estimator that has no returns.
    """

    final_scores_B: Tensor
    kl_BR: Tensor
    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor | None

    @classmethod
    def of(
        cls,
        measured: Measured,
        final_scores_B: Tensor,
        kl_BR: Tensor,
        rewards_BR: Tensor,
        advantages_BR: Tensor,
        returns_BR: Tensor | None,
    ) -> Experience:
        """The measurements, with what a loop has computed from them."""
        return cls(
            **vars(measured),
            final_scores_B=final_scores_B,
            kl_BR=kl_BR,
            rewards_BR=rewards_BR,
            advantages_BR=advantages_BR,
            returns_BR=returns_BR,
        )

    @property
    def kl_per_sequence(self) -> float:
        """Mean over sequences of the KL summed over their tokens, in nats."""
        return float(self.kl_BR.sum(dim=1).mean())


def make_experience(m: Measured, final_scores_B: Tensor, config: PPOConfig, *, kl_coef: float) -> Experience:
    """From final scores to advantages: the KL to the reference at every token, where it is part of the rewards, the
    score at the last one, and then what the estimator makes of them."""
    mask_BR = m.response_mask_BR
    kl_BR = kl_per_token(m.old_logprobs_BR, m.ref_logprobs_BR, mask_BR)
    in_rewards = config.objective.kl_in == "reward"
    rewards_BR = shape_rewards(final_scores_B, kl_BR, mask_BR, kl_coef=kl_coef if in_rewards else 0.0)
    if config.whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, keep_mean=True)
    rewarded = Rewarded(
        rewards_BR,
        mask_BR,
        group_size=config.group_size,
        values_BR=m.values_BR,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    return Experience.of(m, final_scores_B, kl_BR, rewards_BR, *config.estimator.estimate(rewarded))


def _means(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """`ppo/reward/NAME`: the mean of each reward over the rows that it scores; one that scores none is left out."""
    scored = {name: part_B[~part_B.isnan()] for name, part_B in parts.items()}
    return {f"ppo/reward/{name}": float(part_B.mean()) for name, part_B in scored.items() if len(part_B)}


def rollout_metrics(experience: Experience, *, group_size: int = 1) -> dict[str, float]:
    """The metrics of an iteration's rollout, before anything is learned from it. Those of a critic are there where one
    is, that of groups for groups of more than one response."""
    e, mask_BR = experience, experience.response_mask_BR
    lengths_B = mask_BR.sum(dim=1).float()
    sampler = torch.tensor([p for row in e.rollout.sampler_logprobs for p in row])
    estimates = kl_estimates(e.kl_BR, mask_BR)
    raw_BR = e.advantages_BR if e.returns_BR is None else e.returns_BR  # before whitening
    groups = {"ppo/uniform_groups": float(uniform_groups(e.final_scores_B, group_size).sum())} if group_size > 1 else {}
    of_critic: dict[str, float] = {}
    if e.values_BR is not None and e.returns_BR is not None:
        raw_BR = e.returns_BR - e.values_BR
        of_critic = {
            "ppo/explained_variance": explained_variance(e.values_BR, e.returns_BR, mask_BR),
            "ppo/values_mean": float(e.values_BR[mask_BR].mean()),
            "ppo/returns_mean": float(e.returns_BR[mask_BR].mean()),
        }
    return {
        "ppo/scores_mean": float(e.scores_B.mean()),
        "ppo/scores_std": float(e.scores_B.std(unbiased=False)),
        "ppo/final_scores_mean": float(e.final_scores_B.mean()),
        **groups,
        **_means(e.parts),
        "ppo/kl": e.kl_per_sequence,
        "ppo/kl_k1": estimates["k1"],
        "ppo/kl_k2": estimates["k2"],
        "ppo/kl_k3": estimates["k3"],
        "ppo/entropy": float(e.entropy_BR[mask_BR].mean()),
        **of_critic,
        "ppo/advantages_std": float(raw_BR[mask_BR].std(unbiased=False)),
        "ppo/response_length": float(lengths_B.mean()),
        "ppo/eos_rate": float(e.rollout.stopped_B.float().mean()),
        "ppo/score_length_correlation": correlation(e.scores_B, lengths_B),
        "ppo/sampler_mismatch": float((sampler.exp() - e.old_logprobs_BR[mask_BR].exp()).abs().mean()),
    }
