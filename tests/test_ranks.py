"""The tests' own ranks: results in order, failures with their cause, no hanging."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.training import distributed
from tests.helpers.ranks import RanksFailed


def _sum(tensor: torch.Tensor) -> tuple[int, float, torch.Tensor]:
    (total,) = distributed.sum_over_ranks(distributed.rank() + 1)
    return distributed.rank(), total, tensor + distributed.rank()


def _fail_on_one() -> None:
    print("what the rank said")
    if distributed.rank() == 1:
        raise ValueError("rank one has a reason")
    distributed.barrier()


def _sleep_or_die(what: str) -> None:
    if what == "die" and distributed.rank() == 1:
        os._exit(9)
    time.sleep(60)


def test_ranks_answer_in_order_with_tensors_by_value(run_ranks: Callable[..., list[Any]]) -> None:
    results = run_ranks(_sum, torch.tensor([10.0]), world_size=2)
    assert [(rank, total, tensor.tolist()) for rank, total, tensor in results] == [(0, 3.0, [10.0]), (1, 3.0, [11.0])]


def test_a_failing_rank_is_shown_and_ends_the_others(run_ranks: Callable[..., list[Any]]) -> None:
    with pytest.raises(RanksFailed, match="rank one has a reason") as caught:
        run_ranks(_fail_on_one)
    assert "what the rank said" in str(caught.value)


@pytest.mark.parametrize("what", ["sleep", "die"])
def test_a_rank_that_hangs_or_dies_does_not_hang_the_tests(run_ranks: Callable[..., list[Any]], what: str) -> None:
    with pytest.raises(RanksFailed, match="gave no answer"):
        run_ranks(_sleep_or_die, what, timeout=2)
