"""DPO and IPO: what is learned from pairs. B pairs of a micro-batch, R training pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from data.batches import StepSampler, own_micro_batches
from data.stage_data import preferences
from rlhf import console
from rlhf.template import Template
from rlhf.training.engine import TrainEngine
from step2_dpo.batches import Batch, by_pair, collate_pairs, sums_of, token_logprobs, tokens_of
from step2_dpo.config import DPOConfig
from step2_dpo.loss import dpo_losses, held_out_figures, ipo_losses, kl_estimates
from step2_dpo.reference import Measure, Tensors, kept_reference, of_data

LOOK_AT = 1000  # pairs that are asked for margins


class Pairs:
    """The pairs of a run, their reference, and the loss on them."""

    unit = "pair"

    def __init__(self, config: DPOConfig, template: Template, pad: int) -> None:
        self.config, self.pad = config, pad
        self.data = preferences(config, template)
        # log π_ref, fp32, on the CPU: sums over the tokens of the chosen and the rejected response of each training
        # pair, NaN for pairs that no step takes; and, for each held-out pair, those of all counted tokens
        self._train_R2 = torch.zeros(0, 2)
        self._held_out: list[Tensor] = []

    def keep_reference(self, engine: TrainEngine, sampler: StepSampler, total: int) -> None:
        """Work out or read the reference's log-probabilities of all that `total` steps take, while `engine` holds its
        weights."""
        train, held_out = self.data.train, self.data.held_out
        taken = sorted({row for step in range(min(total, sampler.steps_per_epoch)) for row in sampler.rows(step)})
        if any(train[row]["margin"] for row in taken[:LOOK_AT]):
            console.warn("the pairs have margins, which DPO does not use; the reward model of --method ppo does")

        def work_out(measure: Measure) -> Tensors:
            sums_R2 = torch.full((len(train), 2), torch.nan)
            found = measure(taken, self._collate_train, _sums_of_pairs, lengths=train.lengths[taken])
            for row, sums in found:
                sums_R2[row] = torch.as_tensor(sums)
            tokens = measure(range(len(held_out)), self._collate_held_out, _tokens_of_pairs, lengths=held_out.lengths)
            return {
                "train": sums_R2,
                "held_out": torch.cat([torch.tensor(each) for _, each in tokens]),
                "held_out_lengths": torch.tensor([len(each) for _, each in tokens]),
            }

        kept = kept_reference(
            engine,
            self.config,
            {**of_data(self.data), "pairs": len(taken)},
            work_out,
            rows=len(taken) + len(held_out),
            unit=self.unit,
        )
        self._train_R2 = kept["train"]
        self._held_out = list(kept["held_out"].split(kept["held_out_lengths"].tolist()))

    # --- a step ------------------------------------------------------------------------------------------------------

    def micro_batches(self, rows: Sequence[int]) -> list[Batch]:
        """This rank's share of the pairs of a step; all ranks have equally many, some empty."""
        lengths = self.data.train.lengths[list(rows)]
        parts = own_micro_batches(rows, micro_batch_size=self.config.micro_batch_size, lengths=lengths)
        return [self._collate_train(part) for part in parts]

    def baseline(self, engine: TrainEngine, step: int, rows: Sequence[int]) -> float:
        """A pair is compared with itself alone."""
        return 0.0

    def losses(self, engine: TrainEngine, batch: Batch, baseline: float) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of a micro-batch's pairs, and sums of their figures; 0 in an empty batch."""
        rewards_B2 = self._rewards(engine, batch)
        z_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        counts_B = torch.full_like(z_B, bool(batch.rows), dtype=torch.bool)
        return torch.where(counts_B, pair_losses(z_B, self.config), 0.0).sum(), {
            "dpo/train_accuracy": float(((z_B > 0) & counts_B).sum()),
            "dpo/train_margin": float(torch.where(counts_B, z_B.detach(), 0.0).sum()),
        }

    def _rewards(self, engine: TrainEngine, batch: Batch) -> Tensor:
        """β · log-ratio of the chosen and the rejected response of each pair, [B, 2]; of one pair of padding in an
        empty batch."""
        sums_B2 = by_pair(sums_of(token_logprobs(engine, batch), batch))
        ref_B2 = self._train_R2[batch.rows] if batch.rows else torch.zeros(1, 2)
        ratios_B2 = sums_B2 - ref_B2.to(sums_B2)
        if self.config.is_averaged:
            ratios_B2 = ratios_B2 / by_pair(batch.lengths_S).to(ratios_B2)
        return self.config.beta * ratios_B2

    # --- held-out pairs ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, engine: TrainEngine) -> dict[str, float]:
        """The figures on all held-out pairs, a share of them on each rank, the same on every rank."""
        engine.train(False)
        rows, config = self.data.held_out, self.config

        def figures(logprobs_N: Tensor, batch: Batch) -> Iterator[tuple[float, float, float]]:
            for row, new in zip(batch.rows, _tokens_of_pairs(logprobs_N, batch), strict=False):
                ref_N, new_N = self._held_out[row], torch.tensor(new)
                chosen = len(rows[row]["chosen_ids"])
                scale = (chosen, max(1, len(new_N) - chosen)) if config.is_averaged else (1, 1)
                ratios = (new_N - ref_N)[:chosen].sum() / scale[0], (new_N - ref_N)[chosen:].sum() / scale[1]
                kl = float(kl_estimates(ref_N, new_N).sum()) / 2
                yield config.beta * float(ratios[0]), config.beta * float(ratios[1]), kl

        measure = Measure(engine, config.micro_batch_size)
        found = measure(range(len(rows)), self._collate_held_out, figures, lengths=rows.lengths)
        scored = torch.tensor([figures for _, figures in found])
        rewards_B2, kl_B = scored[:, :2], scored[:, 2]
        losses_B = pair_losses(rewards_B2[:, 0] - rewards_B2[:, 1], config)
        return held_out_figures(rewards_B2, losses_B, kl_B, sources=[rows[i]["source"] for i in range(len(rows))])

    def ranked_by_reference(self) -> float | None:
        """The share of held-out pairs whose chosen response the reference itself finds likelier."""
        right = 0
        for row, tokens in enumerate(self._held_out):
            chosen, rejected = tokens.split([n := len(self.data.held_out[row]["chosen_ids"]), len(tokens) - n])
            averaged = self.config.is_averaged
            right += bool(chosen.mean() > rejected.mean() if averaged else chosen.sum() > rejected.sum())
        return right / len(self._held_out)

    def _collate_train(self, rows: Sequence[int]) -> Batch:
        return collate_pairs(self.data.train, rows, pad=self.pad)

    def _collate_held_out(self, rows: Sequence[int]) -> Batch:
        return collate_pairs(self.data.held_out, rows, pad=self.pad)


def pair_losses(z_B: Tensor, config: DPOConfig) -> Tensor:
    """The loss of each pair, as the settings say."""
    if config.loss == "ipo":
        return ipo_losses(z_B, beta=config.beta)
    return dpo_losses(z_B, label_smoothing=config.label_smoothing)


def _sums_of_pairs(logprobs_N: Tensor, batch: Batch) -> list[list[float]]:
    return by_pair(sums_of(logprobs_N, batch)).tolist()


def _tokens_of_pairs(logprobs_N: Tensor, batch: Batch) -> list[list[float]]:
    """The counted tokens of each pair, of the chosen response and then of the rejected one."""
    parts: list[Any] = tokens_of(logprobs_N, batch)
    half = len(parts) // 2
    return [[*chosen, *rejected] for chosen, rejected in zip(parts[:half], parts[half:], strict=True)]
