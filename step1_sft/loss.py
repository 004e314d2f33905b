"""The loss of stage 1, and the batches that it is a mean over.

B rows of a micro-batch, T tokens, N counted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.batches import own_micro_batches
from data.collate import DemonstrationBatch, collate_demonstrations
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step1_sft.config import SFTConfig


def micro_batches(rows: Any, indices: Sequence[int], config: SFTConfig, pad: int) -> list[DemonstrationBatch]:
    """This rank's share of the rows; all ranks get equally many micro-batches, some of them empty if rows run out."""
    parts = own_micro_batches(indices, micro_batch_size=config.micro_batch_size, lengths=rows.lengths[list(indices)])
    return [
        collate_demonstrations(
            [rows[index] for index in part], pad_token_id=pad, train_on_prompt=config.train_on_prompt
        )
        for part in parts
    ]


def kept_rows(batches: Sequence[DemonstrationBatch]) -> Iterator[dict[str, Any]]:
    """The rows of a step that was skipped, as they are kept on disk."""
    for batch in batches:
        for ids, mask in zip(batch.input_ids_BT.tolist(), batch.loss_mask_BT.tolist(), strict=True):
            yield {"input_ids": ids, "loss_mask": mask}


def token_loss_sum(engine: TrainEngine, batch: DemonstrationBatch) -> torch.Tensor:
    """Cross-entropy summed over the counted tokens, in nats."""
    device = distributed.device()
    positions_BT = None if batch.position_ids_BT is None else batch.position_ids_BT.to(device)
    tokens = engine(batch.input_ids_BT.to(device), batch.loss_mask_BT.to(device), position_ids_BT=positions_BT)
    return -tokens.logprobs_N.sum()


@torch.no_grad()
def perplexity(engine: TrainEngine, rows: Any, config: SFTConfig, pad: int) -> float:
    """exp(mean cross-entropy over all counted tokens of the rows, on all ranks); NaN where no token counts."""
    engine.train(False)
    loss_sum, count = 0.0, 0
    for batch in micro_batches(rows, range(len(rows)), config, pad):
        loss_sum += float(token_loss_sum(engine, batch))
        count += int(batch.loss_mask_BT.sum())
    loss_sum, total = distributed.sum_over_ranks(loss_sum, count)
    return math.exp(loss_sum / total) if total else math.nan
