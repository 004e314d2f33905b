"""From a rollout to what is ready to optimise: log-probabilities, values, scores, rewards, advantages.

A forward pass that the first optimiser step would repeat on the same weights may be kept, graph and all.

B sequences of the whole rollout batch, R response tokens, N counted tokens of a micro-batch (flat).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.batches import deal
from rlhf.models.causal_model import TokenLogprobs
from rlhf.models.tensors import correlation, whiten
from rlhf.training import distributed
from step3_ppo.advantages import (
    estimate_advantages,
    explained_variance,
    kl_estimates,
    kl_per_token,
    normalise_scores,
    shape_rewards,
)
from step3_ppo.config import PPOConfig
from step3_ppo.roles import Roles
from step3_ppo.rollout import Rollout, sequence_batch


@dataclass
class Kept:
    """A micro-batch of the first optimiser step, and what its scoring left to go back through."""

    rows: list[int]
    tokens: TokenLogprobs
    values_N: Tensor


@dataclass
class Experience:
    """A rollout and its tables, on the CPU and alike on every rank; what does not count is 0.

    `scores_B` are the reward model's own, `final_scores_B` normalised, clipped and less the penalty. Log-probabilities
    and KL in nats.
    """

    rollout: Rollout
    response_mask_BR: Tensor
    old_logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    entropy_BR: Tensor
    values_BR: Tensor
    scores_B: Tensor
    final_scores_B: Tensor
    kl_BR: Tensor
    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor
    first_step: list[int] = field(default_factory=list)  # the rows of `kept` on all ranks
    kept: list[Kept] = field(default_factory=list)  # emptied by the first optimiser step

    def counted(self, table_BR: Tensor, rows: list[int]) -> Tensor:
        """The counted entries of a table in the order of a micro-batch's tokens: [N]."""
        return table_BR[rows][self.response_mask_BR[rows]]

    def is_finite(self) -> bool:
        """Whether every score, log-probability and value is a number that can be learned from."""
        tables = (self.scores_B, self.old_logprobs_BR, self.ref_logprobs_BR, self.values_BR)
        return all(bool(torch.isfinite(table).all()) for table in tables)

    @property
    def kl_per_sequence(self) -> float:
        """Mean over sequences of the KL summed over their tokens, in nats."""
        return float(self.kl_BR.sum(dim=1).mean())


def make_experience(
    rollout: Rollout, roles: Roles, config: PPOConfig, *, kl_coef: float, first_step: Sequence[int] = ()
) -> Experience:
    """Measure a rollout with the four roles and shape it; every rank measures its share and all get the whole.

    The forward passes of the rows in `first_step` are kept for the optimiser step that takes exactly these rows before
    any weight has changed.
    """
    mask_BR = rollout.response_mask_BR
    (old_BR, ref_BR, entropy_BR, values_BR, scores_B), kept = _measure(rollout, roles, config, first_step)
    final_scores_B = normalise_scores(
        scores_B, mean=roles.reward.score_mean, std=roles.reward.score_std, clip=config.score_clip
    ) - config.missing_eos_penalty * (~rollout.stopped_B)
    kl_BR = kl_per_token(old_BR, ref_BR, mask_BR)
    rewards_BR = shape_rewards(final_scores_B, kl_BR, mask_BR, kl_coef=kl_coef)
    if config.whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, keep_mean=True)
    advantages_BR, returns_BR = estimate_advantages(
        values_BR, rewards_BR, mask_BR, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    return Experience(
        rollout=rollout,
        response_mask_BR=mask_BR,
        old_logprobs_BR=old_BR,
        ref_logprobs_BR=ref_BR,
        entropy_BR=entropy_BR,
        values_BR=values_BR,
        scores_B=scores_B,
        final_scores_B=final_scores_B,
        kl_BR=kl_BR,
        rewards_BR=rewards_BR,
        advantages_BR=whiten(advantages_BR, mask_BR),
        returns_BR=returns_BR,
        first_step=list(first_step),
        kept=kept,
    )


def _measure(
    rollout: Rollout, roles: Roles, config: PPOConfig, first_step: Sequence[int]
) -> tuple[tuple[Tensor, ...], list[Kept]]:
    """Old and reference log-probabilities, entropy and values [B, R] and raw scores [B], by the training weights."""
    actor, critic = roles.actor, roles.critic
    others = sorted(set(range(len(rollout))) - set(first_step))
    kept: list[Kept] = []
    measured: list[tuple[list[int], Tensor, Tensor]] = []
    for rows, keep in [(p, True) for p in micro_batches(rollout, first_step, config)] + [
        (p, False) for p in micro_batches(rollout, others, config)
    ]:
        actor.engine.train(keep)
        critic.engine.train(keep)
        batch = sequence_batch(rollout, rows, pad_token_id=actor.tokenizer.pad_token_id)
        with torch.set_grad_enabled(keep):
            tokens, values_N = actor.scores(batch, with_entropy=True), critic.values(batch)
        if keep:
            kept.append(Kept(rows, tokens, values_N))
        with torch.no_grad():
            ref_N = actor.ref_logprobs(batch)
            scores_B = roles.reward.scores(rollout, rows, batch, actor.template)
        tables_4N = torch.stack([tokens.logprobs_N, ref_N, tokens.entropy_N, values_N]).detach()
        measured.append((rows, tables_4N.cpu(), scores_B.cpu()))
    mask_BR = rollout.response_mask_BR
    tables_4BR, scores_B = torch.zeros((4, *mask_BR.shape)), torch.zeros(len(rollout))
    for rows, tables_4N, scores in (item for rank in distributed.gather_objects(measured) for item in rank):
        table = torch.zeros((4, len(rows), mask_BR.shape[1]))
        table[:, mask_BR[rows]] = tables_4N
        tables_4BR[:, rows] = table
        scores_B[rows] = scores
    old_BR, ref_BR, entropy_BR, values_BR = tables_4BR
    return (old_BR, ref_BR, entropy_BR, values_BR, scores_B), kept


def micro_batches(rollout: Rollout, rows: Sequence[int], config: PPOConfig) -> list[list[int]]:
    """This rank's share of rows of a rollout; nothing for no rows."""
    if not len(rows):
        return []
    lengths = rollout.lengths
    return deal(
        rows,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batch_size=config.micro_batch_size,
        lengths=[lengths[row] for row in rows],
    )


def figures(experience: Experience) -> dict[str, float]:
    """What is reported of an iteration's rollout."""
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
