"""The optimiser steps of one iteration: mini-batches, clipped losses, the pretraining mix, the moving average.

N counted tokens of a micro-batch (flat); `count` is their number in the mini-batch, over all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf.training import distributed
from step3_ppo.batches import mini_batches
from step3_ppo.config import PPOConfig
from step3_ppo.ema import EMA
from step3_ppo.estimators import uniform_groups
from step3_ppo.experience import Experience
from step3_ppo.losses import actor_loss, critic_loss, kl_loss, mean_count, mean_weights, sequence_actor_loss
from step3_ppo.passes import ForwardPasses
from step3_ppo.pretraining_mix import PretrainingMix, ptx_backward


@dataclass
class Totals:
    """The optimiser steps of an iteration: how many, the metrics of the first, and the sums of all, which `means`
    divides."""

    sums: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    stopped_early: bool = False

    def add(self, metrics: Mapping[str, float]) -> None:
        self.first = self.first or dict(metrics)
        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / max(self.steps, 1) for name, value in self.sums.items()}


def optimise(
    experience: Experience,
    passes: ForwardPasses,
    config: PPOConfig,
    *,
    iteration: int,
    steps_before: int,
    kl_coef: float | None = None,
    ema: EMA | None = None,
    ptx: PretrainingMix | None = None,
) -> Totals:
    """Go over the experience `ppo_epochs` times, with an optimiser step of actor and critic for each mini-batch.

    `steps_before` are the optimiser steps of earlier iterations. `kl_coef` is the weight of a KL in the loss (default:
    that of the settings). In the first `critic_warmup_iterations` only the critic steps. A mini-batch whose groups are
    all left out makes no step. If an experience is not finite, nothing is learned: the actor counts a skipped step.
    """
    totals, roles, group_size = Totals(), passes.roles, config.group_size
    kl_coef = config.kl_coef if kl_coef is None else kl_coef
    left_out = uniform_groups(experience.final_scores_B, group_size).tolist() if config.drop_uniform_groups else []
    learns = iteration >= config.critic_warmup_iterations
    with passes.training(actor=learns):
        if not experience.is_finite():
            roles.actor.engine.skip_step()
            return totals
        for epoch in range(config.ppo_epochs):
            for rows in mini_batches(
                len(experience),
                config.mini_batch_size,
                seed=config.seed,
                iteration=iteration,
                epoch=epoch,
                group_size=group_size,
            ):
                if left_out:
                    rows = [row for row in rows if not left_out[row // group_size]]
                    if not rows:
                        continue
                metrics = {}
                if learns:
                    metrics = _actor_backward(experience, rows, passes, config, kl_coef=kl_coef)
                    if ptx is not None:
                        metrics["ppo/ptx_loss"] = ptx_backward(
                            ptx,
                            roles.actor,
                            step=steps_before + totals.steps,
                            micro_batch_size=config.micro_batch_size,
                        )
                    # early stop: the actor is too far from the weights that sampled, so neither model steps
                    if config.early_stop_kl is not None and metrics["ppo/approx_kl"] > config.early_stop_kl:
                        roles.actor.engine.discard()
                        totals.stopped_early = True
                        return totals
                    done = roles.actor.engine.step()
                    metrics |= {"ppo/grad_norm_actor": done.grad_norm, "ppo/learning_rate": done.learning_rate}
                    if ema is not None and done.applied:
                        ema.update()
                totals.add(metrics | _critic_step(experience, rows, passes, config))
    return totals


def steps_per_iteration(config: PPOConfig) -> int:
    """Optimiser steps of one iteration: ppo_epochs · ⌈rollout_batch_size / mini_batch_size⌉."""
    return config.ppo_epochs * math.ceil(config.rollout_batch_size / config.mini_batch_size)


def _actor_backward(
    e: Experience, rows: list[int], passes: ForwardPasses, config: PPOConfig, *, kl_coef: float
) -> dict[str, float]:
    """Backward of the clipped loss, plus the KL where it is part of the loss, minus the entropy bonus, over one
    mini-batch; the caller steps. Metrics are means over all ranks."""
    engine, device, objective = passes.roles.actor.engine, distributed.device(), config.objective
    mask_BR = e.response_mask_BR[rows]
    tokens_in_all = max(int(mask_BR.sum()), 1)
    count = max(mean_count(mask_BR, objective, longest=config.max_response_length), 1)
    clip = {"cliprange": config.cliprange, "cliprange_high": config.cliprange_high}
    sums = [0.0, 0.0, 0.0, 0.0]
    for part, tokens in passes.actor(e.rollout, rows, with_entropy=config.entropy_coef > 0):
        mask = e.response_mask_BR[part].to(device)
        weights_N = mean_weights(mask, objective)
        old_N, advantages_N = (e.counted(t, part).to(device) for t in (e.old_logprobs_BR, e.advantages_BR))
        if objective.ratio == "sequence":
            loss = sequence_actor_loss(tokens.logprobs_N, old_N, advantages_N, mask, **clip)
        else:
            loss = actor_loss(tokens.logprobs_N, old_N, advantages_N, weights_N=weights_N, **clip)
        whole, kl_sum = loss.loss_sum, 0.0
        if objective.kl_in == "loss":
            kl = kl_loss(tokens.logprobs_N, e.counted(e.ref_logprobs_BR, part).to(device), weights_N)
            whole, kl_sum = whole + kl_coef * kl, float(kl.detach())
        if config.entropy_coef:  # always a mean over tokens
            whole = whole - config.entropy_coef * (count / tokens_in_all) * tokens.entropy_N.sum()
        engine.backward(whole, count=count)
        local = (float(loss.loss_sum.detach()), loss.clipped, loss.approx_kl_sum, kl_sum)
        sums = [a + b for a, b in zip(sums, local, strict=True)]
    loss_sum, clipped, approx_kl_sum, kl_sum = distributed.sum_over_ranks(*sums)
    metrics = {
        "ppo/actor_loss": loss_sum / count,
        "ppo/clipfrac": clipped / (len(rows) if objective.ratio == "sequence" else tokens_in_all),
        "ppo/approx_kl": approx_kl_sum / tokens_in_all,
    }
    return metrics | ({"ppo/kl_loss": kl_sum / count} if objective.kl_in == "loss" else {})


def _critic_step(e: Experience, rows: list[int], passes: ForwardPasses, config: PPOConfig) -> dict[str, float]:
    """Backward of the clipped value loss over one mini-batch, and the critic's optimiser step; nothing without one."""
    if passes.roles.critic is None:
        return {}
    assert e.values_BR is not None, "a critic measures values"
    assert e.returns_BR is not None, "an estimator with a critic gives returns"
    engine, device = passes.roles.critic.engine, distributed.device()
    count = int(e.response_mask_BR[rows].sum())
    loss_sum = 0.0
    for part, values_N in passes.critic(e.rollout, rows):
        micro_sum = critic_loss(
            values_N,
            e.counted(e.values_BR, part).to(device),
            e.counted(e.returns_BR, part).to(device),
            cliprange_value=config.cliprange_value,
        )
        engine.backward(micro_sum, count=count)
        loss_sum += float(micro_sum.detach())
    done = engine.step()
    (loss_sum,) = distributed.sum_over_ranks(loss_sum)
    return {"ppo/critic_loss": loss_sum / max(count, 1), "ppo/grad_norm_critic": done.grad_norm}
