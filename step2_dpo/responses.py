"""KTO: what is learned from single responses that are good or bad. B responses of a micro-batch, R training responses.

Each step estimates z0, the KL to the reference, from mismatched couples: the prompt of each of its rows with the
response of the row before it in the step's order (the first row's is the last one's). The couples follow from the
step's rows alone, so micro-batches and ranks change nothing. They are known before training, so the reference's
log-probabilities of them are worked out with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.batches import StepSampler, own_micro_batches
from data.rows import Rows
from data.stage_data import unpaired
from rlhf import console
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step2_dpo.batches import Batch, collate, sums_of, token_logprobs, tokens_of
from step2_dpo.config import DPOConfig
from step2_dpo.loss import baseline_of, kl_estimates, kto_losses, ordered, unpaired_figures
from step2_dpo.reference import Measure, Tensors, kept_reference, of_data

# Weighted good responses to weighted bad ones (Ethayarajh et al. 2024, section 4.1).
LEAST_RATIO, LARGEST_RATIO = 1.0, 4 / 3
TOLERATED = 1.25  # times what is outside of them


class Responses:
    """The responses of a run, their reference, and the loss on them."""

    unit = "response"

    def __init__(self, config: DPOConfig, template: Template, pad: int) -> None:
        self.config, self.pad = config, pad
        self.data = unpaired(config, template, demonstrations=config.learn_demonstrations)
        assert isinstance(self.data.train, Rows)
        self.train, self.held_out = self.data.train, self.data.held_out
        self._good = self.train.column("desirable").astype(bool)
        if hint := weights_hint(int(self._good.sum()), int((~self._good).sum()), config):
            console.warn(hint)
        if self.data.report["margins"]:
            console.warn("the pairs have margins, which KTO does not use; the reward model of --method ppo does")
        # log π_ref, fp32, on the CPU: sums over the tokens of each training response, NaN for those that no step takes;
        # over those of the mismatched responses of each step; and those of all counted tokens, and of the mismatched
        # responses, of held-out rows
        self._train_R = self._held_out_mismatched = torch.zeros(0)
        self._mismatched: list[Tensor] = []
        self._held_out: list[Tensor] = []

    def keep_reference(self, engine: TrainEngine, sampler: StepSampler, total: int) -> None:
        """Work out or read the reference's log-probabilities of all that `total` steps take, while `engine` holds its
        weights."""
        taken = sorted({row for step in range(min(total, sampler.steps_per_epoch)) for row in sampler.rows(step)})
        of_steps = [mismatched(sampler.rows(step)) for step in range(total)]
        couples, held_out = np.concatenate(of_steps), mismatched(range(len(self.held_out)))

        def work_out(measure: Measure) -> Tensors:
            train_R = torch.full((len(self.train),), torch.nan)
            lengths = self.train.lengths[taken]
            for row, value in measure(taken, self._batch_of(self.train), _sums, lengths=lengths):
                train_R[row] = value
            tokens = measure(
                range(len(self.held_out)), self._batch_of(self.held_out), tokens_of, lengths=self.held_out.lengths
            )
            return {
                "train": train_R,
                "mismatched": self._sums_of_couples(measure, self.train, couples),
                "held_out": torch.cat([torch.tensor(each) for _, each in tokens]),
                "held_out_lengths": torch.tensor([len(each) for _, each in tokens]),
                "held_out_mismatched": self._sums_of_couples(measure, self.held_out, held_out),
            }

        order = {"steps": total, "batch": sampler.mini_batch_size, "seed": sampler.seed}
        kept = kept_reference(
            engine,
            self.config,
            {**of_data(self.data), "responses": len(taken), **order},
            work_out,
            rows=len(taken) + len(couples) + len(self.held_out) + len(held_out),
            unit=self.unit,
        )
        self._train_R, self._held_out_mismatched = kept["train"], kept["held_out_mismatched"]
        self._mismatched = list(kept["mismatched"].split([len(each) for each in of_steps]))
        self._held_out = list(kept["held_out"].split(kept["held_out_lengths"].tolist()))

    # --- a step ------------------------------------------------------------------------------------------------------

    def micro_batches(self, rows: Sequence[int]) -> list[Batch]:
        """This rank's share of the responses of a step; all ranks have equally many, some empty."""
        lengths = self.train.lengths[list(rows)]
        parts = own_micro_batches(rows, micro_batch_size=self.config.micro_batch_size, lengths=lengths)
        return [self._batch_of(self.train)(part) for part in parts]

    @torch.no_grad()
    def baseline(self, engine: TrainEngine, step: int, rows: Sequence[int]) -> float:
        """z0 of the whole step, by a pass without gradients; the same on every rank."""
        engine.train(False)
        couples, ref, ratio_sum = mismatched(rows), self._mismatched[step], 0.0
        lengths = _lengths(self.train, couples)
        numbers, size = range(len(couples)), self.config.micro_batch_size
        for part in own_micro_batches(numbers, micro_batch_size=size, lengths=lengths):
            batch = self._batch_of_couples(self.train, couples)(part)
            sums_B = sums_of(token_logprobs(engine, batch), batch).cpu()
            ratio_sum += float((sums_B[: len(part)] - ref[part]).double().sum())
        (ratio_sum,) = distributed.sum_over_ranks(ratio_sum)
        return baseline_of(ratio_sum, len(couples))

    def losses(self, engine: TrainEngine, batch: Batch, baseline: float) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of a micro-batch's responses, and sums of their figures; 0 in an empty batch."""
        sums_B = sums_of(token_logprobs(engine, batch), batch)
        ref_B = self._train_R[batch.rows] if batch.rows else torch.zeros(1)
        good_B = torch.as_tensor(self._good[batch.rows] if batch.rows else [True], device=sums_B.device)
        ratios_B = sums_B - ref_B.to(sums_B)
        counts_B = torch.full_like(ratios_B, bool(batch.rows), dtype=torch.bool)
        losses_B = self._losses(ratios_B, good_B, baseline)
        right_B = torch.where(good_B, ratios_B > baseline, ratios_B < baseline)
        return torch.where(counts_B, losses_B, 0.0).sum(), {
            "dpo/train_accuracy": float((right_B & counts_B).sum()),
        }

    def _losses(self, ratios_B: Tensor, good_B: Tensor, baseline: float) -> Tensor:
        return kto_losses(
            ratios_B,
            good_B,
            baseline=baseline,
            beta=self.config.beta,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )

    # --- held-out responses ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, engine: TrainEngine) -> dict[str, float]:
        """The figures on all held-out responses, a share of them on each rank, the same on every rank."""
        engine.train(False)
        rows, measure = self.held_out, Measure(engine, self.config.micro_batch_size)

        def figures(logprobs_N: Tensor, batch: Batch) -> Iterator[tuple[float, float]]:
            for row, new in zip(batch.rows, tokens_of(logprobs_N, batch), strict=False):
                ref_N, new_N = self._held_out[row], torch.tensor(new)
                yield float((new_N - ref_N).sum()), float(kl_estimates(ref_N, new_N).sum())

        found = measure(range(len(rows)), self._batch_of(rows), figures, lengths=rows.lengths)
        ratios_B, kl_B = torch.tensor([each for _, each in found]).unbind(dim=1)
        others = self._sums_of_couples(measure, rows, mismatched(range(len(rows))))
        baseline = baseline_of(float((others - self._held_out_mismatched).double().sum()), len(others))
        good_B = torch.as_tensor(rows.column("desirable").astype(bool))
        return unpaired_figures(
            self.config.beta * ratios_B,
            good_B,
            self._losses(ratios_B, good_B, baseline),
            kl_B,
            baseline=baseline,
            sources=[rows[i]["source"] for i in range(len(rows))],
        )

    def ranked_by_reference(self) -> float | None:
        """The share of couples of a good and a bad held-out response whose good one the reference itself finds
        likelier; None where there are no such couples."""
        good_B = torch.as_tensor(self.held_out.column("desirable").astype(bool))
        if good_B.all() or not good_B.any():
            return None
        return ordered(torch.stack([tokens.sum() for tokens in self._held_out]), good_B)

    # --- batches -----------------------------------------------------------------------------------------------------

    def _batch_of(self, data: Rows) -> Callable[[Sequence[int]], Batch]:
        return partial(collate_responses, data, pad=self.pad)

    def _batch_of_couples(self, data: Rows, couples: np.ndarray) -> Callable[[Sequence[int]], Batch]:
        return partial(collate_couples, data, couples, pad=self.pad)

    def _sums_of_couples(self, measure: Measure, data: Rows, couples: np.ndarray) -> Tensor:
        lengths = _lengths(data, couples)
        found = measure(range(len(couples)), self._batch_of_couples(data, couples), _sums, lengths=lengths)
        return torch.tensor([value for _, value in found])


def mismatched(rows: Sequence[int]) -> np.ndarray:
    """(row of the prompt, row of the response) of each row of a step, [B, 2]: `[4, 7, 5] → [[4, 5], [7, 4], [5, 7]]`.
    A row alone has no other one's response: [0, 2]."""
    order = np.asarray(rows, dtype=np.int64)
    return np.stack([order, np.roll(order, 1)], axis=1)[: len(order) if len(order) > 1 else 0]


def weights_hint(good: int, bad: int, config: DPOConfig) -> str:
    """What to do where the weighted kinds are far from the ratio at which KTO works; else nothing."""
    ratio = config.desirable_weight * good / (config.undesirable_weight * bad)
    if LEAST_RATIO / TOLERATED <= ratio <= LARGEST_RATIO * TOLERATED:
        return ""
    # the lighter kind gets more weight, up to the nearer end of the range
    if ratio > LARGEST_RATIO:
        way = f"undesirable_weight={config.undesirable_weight * ratio / LARGEST_RATIO:.3g}"
    else:
        way = f"desirable_weight={config.desirable_weight * LEAST_RATIO / ratio:.3g}"
    return (
        f"desirable_weight × {good:,} good responses is {ratio:.2g} times undesirable_weight × {bad:,} bad ones; KTO "
        f"is best at 1 to 1.33: --set step2_dpo.{way}"
    )


def collate_responses(data: Rows, rows: Sequence[int], *, pad: int) -> Batch:
    """`prompt_ids` and `response_ids` of the rows."""
    found = [data[row] for row in rows]
    return collate([(row["prompt_ids"], row["response_ids"]) for row in found] or [([pad], [])], rows, pad=pad)


def collate_couples(data: Rows, couples: np.ndarray, numbers: Sequence[int], *, pad: int) -> Batch:
    """The prompts of some couples with the responses of others; the batch's rows are the couples' numbers."""
    both = [(data[prompt]["prompt_ids"], data[response]["response_ids"]) for prompt, response in couples[numbers]]
    return collate(both or [([pad], [])], numbers, pad=pad)


def _lengths(data: Rows, couples: np.ndarray) -> np.ndarray:
    prompts = data.column("prompt_length")
    return prompts[couples[:, 0]] + (data.lengths - prompts)[couples[:, 1]]


def _sums(logprobs_N: Tensor, batch: Batch) -> list[float]:
    return sums_of(logprobs_N, batch).tolist()
