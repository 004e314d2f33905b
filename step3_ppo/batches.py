"""Which rows are taken: prompts of an iteration, mini-batches of its optimiser steps, micro-batches of a rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.batches import StepSampler, own_micro_batches
from rlhf.template import Message, Template
from step3_ppo.rollout import Rollout


def prompts_of(data: Any, sampler: StepSampler, iteration: int, *, repeats: int) -> list[Any]:
    """The rows of an iteration's prompts, each `repeats` times in a row: one for each response.

    Every iteration takes equally many prompts: an epoch's short last step is filled from the next epoch.
    """
    rows = sampler.rows(iteration)
    epoch = iteration // sampler.steps_per_epoch
    while (lacking := sampler.mini_batch_size - len(rows)) > 0:
        epoch += 1
        rows = rows + sampler.rows(epoch * sampler.steps_per_epoch)[:lacking]
    return [data[row] for row in rows for _ in range(repeats)]


def rows_of_texts(texts: Sequence[str], template: Template) -> list[dict[str, Any]]:
    """Questions as rows of prompts, for a loop that reads no data: {"prompt_ids", "messages", "kept"}. Reward functions
    get them as text."""
    kept = json.dumps({"text": True, "columns": {}})
    turns: list[list[Message]] = [[{"role": "user", "content": text}] for text in texts]
    return [{"prompt_ids": template.prompt_ids(t), "messages": json.dumps(t), "kept": kept} for t in turns]


def mini_batches(
    size: int, mini_batch_size: int, *, seed: int, iteration: int, epoch: int, group_size: int = 1
) -> list[list[int]]:
    """The rows of each optimiser step of an epoch, over all ranks: one permutation of `size` rows, cut into pieces.

    A pure function of seed, iteration and epoch. Groups of `group_size` rows in a row stay together, so
    `mini_batch_size` must be a multiple of it. The last mini-batch may be smaller.
    """
    groups = np.random.default_rng([seed, iteration, epoch]).permutation(size // group_size)
    order = (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)
    return [order[start : start + mini_batch_size].tolist() for start in range(0, size, mini_batch_size)]


def micro_batches(rollout: Rollout, rows: Sequence[int], *, micro_batch_size: int) -> list[list[int]]:
    """This rank's share of rows of a rollout, rows of similar length together; empty without rows.

    All ranks get equally many micro-batches, some of them empty if rows run out.
    """
    if not len(rows):
        return []
    lengths = rollout.lengths
    return own_micro_batches(rows, micro_batch_size=micro_batch_size, lengths=[lengths[row] for row in rows])
