"""The optimiser steps of one iteration: mini-batches, clipped losses, the pretraining mix, the moving average.

B sequences of a micro-batch, N counted tokens of it (flat), of the mini-batch over all ranks in `count`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.batches import StepSampler, deal
from data.collate import collate_demonstrations
from rlhf.training import distributed
from step3_ppo.config import PPOConfig
from step3_ppo.ema import EMA
from step3_ppo.experience import Experience, Kept, micro_batches
from step3_ppo.losses import actor_loss, critic_loss
from step3_ppo.roles import Roles
from step3_ppo.rollout import SequenceBatch, sequence_batch


@dataclass
class PretrainingMix:
    """Rows of plain text, and which of them each optimiser step takes."""

    rows: Any
    sampler: StepSampler
    coef: float


@dataclass
class Totals:
    """Sums over an iteration's optimiser steps; `means` divides."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    stopped_early: bool = False

    def add(self, figures: dict[str, float]) -> None:
        self.steps += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / max(self.steps, 1) for name, value in self.sums.items()}


def mini_batches(size: int, mini_batch_size: int, *, seed: int, iteration: int, epoch: int) -> list[list[int]]:
    """One global permutation per epoch, cut into mini-batches; a pure function of seed, iteration and epoch."""
    order = np.random.default_rng([seed, iteration, epoch]).permutation(size)
    return [order[start : start + mini_batch_size].tolist() for start in range(0, size, mini_batch_size)]


def optimise(
    experience: Experience,
    roles: Roles,
    config: PPOConfig,
    *,
    iteration: int,
    first_step: int,
    ema: EMA | None = None,
    ptx: PretrainingMix | None = None,
) -> Totals:
    """`ppo_epochs` passes over the experience; `first_step` counts the optimiser steps before this iteration.

    Raises ValueError for an experience that kept the forward passes of other rows than those of the first mini-batch.
    """
    totals, train_actor = Totals(), iteration >= config.critic_warmup_iterations
    roles.actor.engine.train(train_actor)
    roles.critic.engine.train()
    size = len(experience.rollout)
    if experience.first_step and experience.first_step != first_rows(config, iteration):
        raise ValueError("the experience kept forward passes of rows that are not those of the first optimiser step")
    for epoch in range(config.ppo_epochs):
        for rows in mini_batches(size, config.mini_batch_size, seed=config.seed, iteration=iteration, epoch=epoch):
            figures = {}
            if train_actor:
                figures = _actor_step(experience, rows, roles, config, ptx, step=first_step + totals.steps)
                # early stop: this mini-batch moved too far from the weights that sampled, so nobody steps
                if config.early_stop_kl is not None and figures["ppo/approx_kl"] > config.early_stop_kl:
                    roles.actor.engine.discard()
                    experience.kept.clear()
                    totals.stopped_early = True
                    return totals
                done = roles.actor.engine.step()
                figures |= {"ppo/grad_norm_actor": done.grad_norm, "ppo/learning_rate": done.learning_rate}
                if ema is not None and done.applied:
                    ema.update()
            figures |= _critic_step(experience, rows, roles, config)
            experience.kept.clear()  # they were of the weights before this step
            totals.add(figures)
    return totals


def first_rows(config: PPOConfig, iteration: int) -> list[int]:
    """The rows of an iteration's first mini-batch."""
    size = config.rollout_batch_size
    return mini_batches(size, config.mini_batch_size, seed=config.seed, iteration=iteration, epoch=0)[0]


def _forwards(
    e: Experience,
    rows: list[int],
    roles: Roles,
    config: PPOConfig,
    *,
    kept: Callable[[Kept], Any],
    new: Callable[[SequenceBatch], Any],
) -> Iterator[tuple[list[int], Any]]:
    """This rank's micro-batches of a mini-batch, and a forward pass of each: what scoring kept, or a new one."""
    if e.kept:
        yield from ((one.rows, kept(one)) for one in e.kept)
        return
    for part in micro_batches(e.rollout, rows, config):
        yield part, new(sequence_batch(e.rollout, part, pad_token_id=roles.actor.tokenizer.pad_token_id))


def _actor_step(
    e: Experience, rows: list[int], roles: Roles, config: PPOConfig, ptx: PretrainingMix | None, *, step: int
) -> dict[str, float]:
    """Backwards of one mini-batch through the actor; the caller steps. Figures are means over all ranks."""
    actor, device = roles.actor, distributed.device()
    count = int(e.response_mask_BR[rows].sum())
    sums = [0.0, 0.0, 0.0]
    wants_entropy = config.entropy_coef > 0
    passes = _forwards(
        e, rows, roles, config, kept=lambda k: k.tokens, new=lambda b: actor.scores(b, with_entropy=wants_entropy)
    )
    for part, tokens in passes:
        loss = actor_loss(
            tokens.logprobs_N,
            e.counted(e.old_logprobs_BR, part).to(device),
            e.counted(e.advantages_BR, part).to(device),
            cliprange=config.cliprange,
        )
        bonus = config.entropy_coef * tokens.entropy_N.sum() if config.entropy_coef else 0.0
        actor.engine.backward(loss.loss_sum - bonus, count=count)
        local = (float(loss.loss_sum.detach()), loss.clipped, loss.approx_kl_sum)
        sums = [a + b for a, b in zip(sums, local, strict=True)]
    loss_sum, clipped, approx_kl_sum = distributed.sum_over_ranks(*sums)
    figures = {
        "ppo/actor_loss": loss_sum / max(count, 1),
        "ppo/clipfrac": clipped / max(count, 1),
        "ppo/approx_kl": approx_kl_sum / max(count, 1),
    }
    if ptx is not None:
        figures["ppo/ptx_loss"] = _ptx_backward(roles, config, ptx, step=step)
    return figures


def _ptx_backward(roles: Roles, config: PPOConfig, ptx: PretrainingMix, *, step: int) -> float:
    """Next-token cross-entropy of `mini_batch_size` rows of text, added to the gradient of the same step."""
    actor, device = roles.actor, distributed.device()
    rows = ptx.sampler.rows(step)
    parts = deal(
        rows, rank=distributed.rank(), world_size=distributed.world_size(), micro_batch_size=config.micro_batch_size
    )
    batches = [
        collate_demonstrations(
            [{"input_ids": ptx.rows[i]["input_ids"], "prompt_length": 1} for i in part],
            pad_token_id=actor.tokenizer.pad_token_id,
        )
        for part in parts
    ]
    (count,) = distributed.sum_over_ranks(sum(int(b.loss_mask_BT.sum()) for b in batches))
    loss_sum = 0.0
    for batch in batches:
        tokens = actor.engine(batch.input_ids_BT.to(device), batch.loss_mask_BT.to(device))
        micro_sum = -tokens.logprobs_N.sum()
        actor.engine.backward(ptx.coef * micro_sum, count=count)
        loss_sum += float(micro_sum.detach())
    (loss_sum,) = distributed.sum_over_ranks(loss_sum)
    return loss_sum / max(count, 1)


def _critic_step(e: Experience, rows: list[int], roles: Roles, config: PPOConfig) -> dict[str, float]:
    """One mini-batch through the critic, and its optimiser step."""
    critic, device = roles.critic, distributed.device()
    count = int(e.response_mask_BR[rows].sum())
    loss_sum = 0.0
    for part, values_N in _forwards(e, rows, roles, config, kept=lambda k: k.values_N, new=critic.values):
        micro_sum = critic_loss(
            values_N,
            e.counted(e.values_BR, part).to(device),
            e.counted(e.returns_BR, part).to(device),
            cliprange_value=config.cliprange_value,
        )
        critic.engine.backward(micro_sum, count=count)
        loss_sum += float(micro_sum.detach())
    done = critic.engine.step()
    (loss_sum,) = distributed.sum_over_ranks(loss_sum)
    return {"ppo/critic_loss": loss_sum / max(count, 1), "ppo/grad_norm_critic": done.grad_norm}


def steps_per_iteration(config: PPOConfig) -> int:
    return config.ppo_epochs * math.ceil(config.rollout_batch_size / config.mini_batch_size)
