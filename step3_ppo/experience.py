"""A rollout with its measurements, and an experience that is ready to optimise.

B sequences of the whole rollout batch, R response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.models.tensors import correlation
from step3_ppo.advantages import explained_variance, kl_estimates
from step3_ppo.rollout import Rollout


@dataclass
class Measured:
    """A rollout and the four roles' outputs for it, on the CPU, the same on every rank; 0 where nothing counts.

    Log-probabilities of actor (`old`) and reference, and entropy, in nats; the critic's values; `scores_B` are raw.
    """

    rollout: Rollout
    response_mask_BR: Tensor
    old_logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    entropy_BR: Tensor
    values_BR: Tensor
    scores_B: Tensor

    def __len__(self) -> int:
        return len(self.rollout)

    def counted(self, table_BR: Tensor, rows: list[int]) -> Tensor:
        """The counted entries of a table in the order of a micro-batch's tokens: [N]."""
        return table_BR[rows][self.response_mask_BR[rows]]

    def is_finite(self) -> bool:
        """Whether every score, log-probability and value is a number that can be learned from."""
        tables = (self.scores_B, self.old_logprobs_BR, self.ref_logprobs_BR, self.values_BR)
        return all(bool(torch.isfinite(table).all()) for table in tables)


@dataclass
class Experience(Measured):
    """The measurements, and the rewards, advantages and returns that follow from them.

    `final_scores_B` are normalised and clipped, minus the penalty for a missing end token; KL in nats; advantages are
    whitened.
    """

    final_scores_B: Tensor
    kl_BR: Tensor
    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor

    @classmethod
    def of(
        cls,
        measured: Measured,
        final_scores_B: Tensor,
        kl_BR: Tensor,
        rewards_BR: Tensor,
        advantages_BR: Tensor,
        returns_BR: Tensor,
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


def rollout_metrics(experience: Experience) -> dict[str, float]:
    """The metrics of an iteration's rollout, before anything is learned from it."""
    e, mask_BR = experience, experience.response_mask_BR
    lengths_B = mask_BR.sum(dim=1).float()
    sampler = torch.tensor([p for row in e.rollout.sampler_logprobs for p in row])
    estimates = kl_estimates(e.kl_BR, mask_BR)
    return {
        "ppo/scores_mean": float(e.scores_B.mean()),
        "ppo/scores_std": float(e.scores_B.std(unbiased=False)),
        "ppo/final_scores_mean": float(e.final_scores_B.mean()),
        "ppo/kl": e.kl_per_sequence,
        "ppo/kl_k1": estimates["k1"],
        "ppo/kl_k2": estimates["k2"],
        "ppo/kl_k3": estimates["k3"],
        "ppo/entropy": float(e.entropy_BR[mask_BR].mean()),
        "ppo/explained_variance": explained_variance(e.values_BR, e.returns_BR, mask_BR),
        "ppo/values_mean": float(e.values_BR[mask_BR].mean()),
        "ppo/returns_mean": float(e.returns_BR[mask_BR].mean()),
        "ppo/advantages_std": float((e.returns_BR - e.values_BR)[mask_BR].std(unbiased=False)),
        "ppo/response_length": float(lengths_B.mean()),
        "ppo/eos_rate": float(e.rollout.stopped_B.float().mean()),
        "ppo/score_length_correlation": correlation(e.scores_B, lengths_B),
        "ppo/sampler_mismatch": float((sampler.exp() - e.old_logprobs_BR[mask_BR].exp()).abs().mean()),
    }
