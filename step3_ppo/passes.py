"""Forward passes over a rollout: those that measure it, and those that an optimiser step computes gradients of.

For the first optimiser step of an iteration these can be the same: no weight has changed in between. With
`reuse_forward` the passes that measured its rows keep their graphs until that step. No other module knows of this.

B sequences of the whole rollout batch, R response tokens, N counted tokens of a micro-batch (flat), X tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import ConfigError
from rlhf.models.causal_model import TokenLogprobs
from rlhf.training import distributed
from step3_ppo.batches import micro_batches, mini_batches
from step3_ppo.config import PPOConfig, reuse_problems
from step3_ppo.experience import Measured
from step3_ppo.rewards.weighted import WeightedRewards
from step3_ppo.roles import Roles
from step3_ppo.rollout import Rollout, SequenceBatch, sequence_batch


@dataclass
class _Kept:
    """The passes of one mini-batch through one model, with their graphs. They are given out at most once: the
    caller is about to change the weights that they were computed with."""

    rollout: Rollout | None = None
    rows: Sequence[int] = ()
    passes: list[tuple[list[int], Any]] = field(default_factory=list)

    def take(self, rollout: Rollout, rows: Sequence[int]) -> list[tuple[list[int], Any]]:
        """The passes of these rows of this rollout, if they were kept. Afterwards nothing is kept."""
        serves = rollout is self.rollout and list(rows) == list(self.rows)
        passes = self.passes if serves else []
        self.clear()
        return passes

    def clear(self) -> None:
        self.rollout, self.rows, self.passes = None, (), []


class ForwardPasses:
    """Runs the roles over a rollout, each rank its share of the rows. Raises ConfigError for `reuse_forward` with
    ZeRO-3."""

    def __init__(self, roles: Roles, config: PPOConfig) -> None:
        self.roles, self.config = roles, config
        self._critics = [roles.critic] if roles.critic is not None else []
        self._kept_of_actor, self._kept_of_critic = _Kept(), _Kept()
        if config.reuse_forward:
            # a stage has checked its settings, but roles can also be built without one
            if problems := reuse_problems(*(engine.zero_stage for engine in roles.engines.values())):
                raise ConfigError(*problems)
            for engine in roles.engines.values():  # kept passes have already used more memory than the step needs
                engine.keep_freed_memory()

    def measure(self, rollout: Rollout, iteration: int) -> Measured:
        """The roles' outputs for the whole rollout under the training weights, the same on every rank.

        `iteration` (from 0) decides which rows the first optimiser step will take.
        """
        reward = self.roles.reward
        if isinstance(reward, WeightedRewards):
            reward.ask(rollout, self.roles.actor.template, iteration=iteration)
        first = self._rows_of_first_step(rollout, iteration)
        others = sorted(set(range(len(rollout))) - set(first))
        self._kept_of_actor, self._kept_of_critic = _Kept(rollout, first), _Kept(rollout, first)
        # what is kept is trained on, so its micro-batches are those of training
        kept, size = self._micro_batches(rollout, first), self.config.scoring_rows
        mine = [self._measure(rollout, rows, keep=True) for rows in kept]
        mine += [
            self._measure(rollout, rows, keep=False) for rows in micro_batches(rollout, others, micro_batch_size=size)
        ]
        everyone = [part for rank in distributed.gather_objects(mine) for part in rank]
        (old_BR, ref_BR, entropy_BR, *values), scores_B = _tables(rollout, everyone, count=3 + len(self._critics))
        parts = {}
        if isinstance(reward, WeightedRewards):
            parts, scores_B = dict(zip(reward.names, scores_B.unbind(dim=1), strict=True)), reward.total(scores_B)
        return Measured(
            rollout=rollout,
            response_mask_BR=rollout.response_mask_BR,
            old_logprobs_BR=old_BR,
            ref_logprobs_BR=ref_BR,
            entropy_BR=entropy_BR,
            values_BR=values[0] if values else None,
            scores_B=scores_B,
            parts=parts,
        )

    def actor(
        self, rollout: Rollout, rows: Sequence[int], *, with_entropy: bool
    ) -> Iterable[tuple[list[int], TokenLogprobs]]:
        """This rank's micro-batches of a mini-batch: for each its rows, and the actor's log-probabilities (and entropy)
        [N] of its counted tokens, in nats, with their graph. Call it once for each optimiser step."""
        return self._kept_of_actor.take(rollout, rows) or self._passes(
            rollout, rows, lambda batch: self.roles.actor.logprobs(batch, with_entropy=with_entropy)
        )

    def critic(self, rollout: Rollout, rows: Sequence[int]) -> Iterable[tuple[list[int], Tensor]]:
        """The same for the critic: its values [N] before the counted tokens."""
        assert self.roles.critic is not None, "this estimator has no critic"
        return self._kept_of_critic.take(rollout, rows) or self._passes(rollout, rows, self.roles.critic.values)

    @contextlib.contextmanager
    def training(self, *, actor: bool) -> Iterator[None]:
        """While inside, the critic is in training mode; so is the actor if `actor`. Afterwards nothing is kept."""
        self.roles.actor.engine.train(actor)
        if self.roles.critic is not None:
            self.roles.critic.engine.train()
        try:
            yield
        finally:
            self._kept_of_actor.clear()
            self._kept_of_critic.clear()

    def _rows_of_first_step(self, rollout: Rollout, iteration: int) -> list[int]:
        """The rows whose passes are kept: none if the actor does not learn."""
        c = self.config
        if not c.reuse_forward or iteration < c.critic_warmup_iterations:
            return []
        size, of_epoch = c.group_size, {"seed": c.seed, "iteration": iteration, "epoch": 0}
        return mini_batches(len(rollout), c.mini_batch_size, **of_epoch, group_size=size)[0]

    def _measure(self, rollout: Rollout, rows: list[int], *, keep: bool) -> tuple[list[int], Tensor, Tensor]:
        """A micro-batch's rows, its tables [4 or 3, N], and its scores, one for each row."""
        actor = self.roles.actor
        for engine in self.roles.engines.values():
            engine.train(keep)
        batch = self._batch(rollout, rows)
        with torch.set_grad_enabled(keep):
            tokens = actor.logprobs(batch, with_entropy=True)
            values = [critic.values(batch) for critic in self._critics]
        if keep:
            self._kept_of_actor.passes.append((rows, tokens))
            self._kept_of_critic.passes += [(rows, values_N) for values_N in values]
        with torch.no_grad():
            ref_N = actor.ref_logprobs(batch)
            scores_B = self.roles.reward.scores(rollout, rows, batch, actor.template)
        tables_XN = torch.stack([tokens.logprobs_N, ref_N, tokens.entropy_N, *values]).detach()
        return rows, tables_XN.cpu(), scores_B.cpu()

    def _passes(
        self, rollout: Rollout, rows: Sequence[int], forward: Callable[[SequenceBatch], Any]
    ) -> Iterator[tuple[list[int], Any]]:
        for part in self._micro_batches(rollout, rows):
            yield part, forward(self._batch(rollout, part))

    def _micro_batches(self, rollout: Rollout, rows: Sequence[int]) -> list[list[int]]:
        return micro_batches(rollout, rows, micro_batch_size=self.config.micro_batch_size)

    def _batch(self, rollout: Rollout, rows: Sequence[int]) -> SequenceBatch:
        return sequence_batch(rollout, rows, pad_token_id=self.roles.actor.tokenizer.pad_token_id)


def _tables(
    rollout: Rollout, parts: Sequence[tuple[list[int], Tensor, Tensor]], *, count: int
) -> tuple[Tensor, Tensor]:
    """All ranks' micro-batches put together: tables [count, B, R], 0 where nothing counts, and scores [B]."""
    mask_BR = rollout.response_mask_BR
    each = next((scores.shape[1:] for _, _, scores in parts), ())  # of a list of rewards, one score for each of them
    tables_XBR, scores_B = torch.zeros((count, *mask_BR.shape)), torch.zeros((len(rollout), *each))
    for rows, tables_XN, scores in parts:
        table = torch.zeros((count, len(rows), mask_BR.shape[1]))
        table[:, mask_BR[rows]] = tables_XN
        tables_XBR[:, rows] = table
        scores_B[rows] = scores
    return tables_XBR, scores_B
