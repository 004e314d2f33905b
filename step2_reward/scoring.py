"""Scores of pairs by a reward model in training, and its figures on held-out pairs.

B pairs of a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from data.batches import own_micro_batches
from data.collate import PreferenceBatch, collate_preferences
from rlhf.models.scalar_model import values_at
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step2_reward.config import RewardConfig
from step2_reward.loss import held_out_figures


class HeldOut(NamedTuple):
    """Figures on held-out pairs by name, and (mean, standard deviation) of the scores of their chosen responses."""

    figures: dict[str, float]
    spread: tuple[float, float]


def micro_batches(rows: Any, indices: Sequence[int], config: RewardConfig, pad: int) -> list[PreferenceBatch]:
    """This rank's share of the pairs; all ranks get equally many micro-batches, some of them empty if pairs run out."""
    parts = shares(rows, indices, config)
    return [collate_preferences([rows[index] for index in part], pad_token_id=pad) for part in parts]


def shares(rows: Any, indices: Sequence[int], config: RewardConfig) -> list[list[int]]:
    """The numbers of the pairs in each of this rank's micro-batches."""
    return own_micro_batches(indices, micro_batch_size=config.micro_batch_size, lengths=rows.lengths[list(indices)])


def kept_rows(batches: Sequence[PreferenceBatch]) -> Iterator[dict[str, Any]]:
    """The rows of a step that was skipped, as they are kept on disk: the chosen responses', then the rejected ones'."""
    for batch in batches:
        for ids, last in zip(batch.input_ids_BT.tolist(), batch.last_B.tolist(), strict=True):
            yield {"input_ids": ids[: last + 1]}


def pair_scores(engine: TrainEngine, batch: PreferenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the chosen and of the rejected responses, [B] each: the head's output at the last counted token."""
    device = distributed.device()
    values_BT = engine(batch.input_ids_BT.to(device))
    pairs = len(batch.margin_B)
    scores = values_at(values_BT, batch.last_B.to(device))
    return scores[:pairs], scores[pairs:]


@torch.no_grad()
def evaluate(engine: TrainEngine, rows: Any, config: RewardConfig, pad: int) -> HeldOut:
    """Score held-out pairs, a share on each rank, and measure all scores, with the same result on every rank."""
    engine.train(False)
    indices = range(len(rows))
    mine: list[tuple[int, float, float]] = []
    for part in shares(rows, indices, config):
        batch = collate_preferences([rows[i] for i in part], pad_token_id=pad)
        chosen_B, rejected_B = pair_scores(engine, batch)
        # an empty part has one row of padding, which `zip` leaves out
        mine += zip(part, chosen_B.tolist(), rejected_B.tolist(), strict=False)
    scored = sorted(item for rank in distributed.gather_objects(mine) for item in rank)
    chosen_B = torch.tensor([chosen for _, chosen, _ in scored])
    rejected_B = torch.tensor([rejected for _, _, rejected in scored])
    lengths = [len(rows[i]["chosen_ids"]) for i in indices] + [len(rows[i]["rejected_ids"]) for i in indices]
    figures = held_out_figures(
        chosen_B,
        rejected_B,
        margins_B=torch.tensor([float(rows[i]["margin"] or 0.0) for i in indices]),
        lengths_2B=torch.tensor(lengths, dtype=torch.float64),
        sources=[rows[i]["source"] for i in indices],
    )
    return HeldOut(figures, (float(chosen_B.mean()), float(chosen_B.std(unbiased=False))))
