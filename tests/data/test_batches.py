from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batches import StepSampler, deal


def test_each_epoch_takes_every_row_once_in_another_order() -> None:
    sampler = StepSampler(10, 4, seed=3)
    assert sampler.steps_per_epoch == 3
    epochs = [[row for step in range(3 * e, 3 * e + 3) for row in sampler.rows(step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert len(sampler.rows(2)) == 2


def test_a_step_depends_on_nothing_but_seed_and_number() -> None:
    """A resumed run asks for step 7 first; it must get what the uninterrupted run got there."""
    straight = StepSampler(10, 4, seed=3)
    rows = [straight.rows(step) for step in range(9)]
    assert StepSampler(10, 4, seed=3).rows(7) == rows[7]
    assert straight.rows(1) == rows[1]
    assert StepSampler(10, 4, seed=4).rows(0) != rows[0]


def test_longest_rows_are_dealt_first_and_side_by_side() -> None:
    lengths = [5, 9, 1, 7, 3, 2]
    ranks = [deal([10, 11, 12, 13, 14, 15], rank=r, world_size=2, micro_batch_size=2, lengths=lengths) for r in (0, 1)]
    # by length: 11 (9), 13 (7), 10 (5), 14 (3), 15 (2), 12 (1), in four micro-batches of 2, 2, 1 and 1
    assert ranks == [[[11, 13], [15]], [[10, 14], [12]]]


@pytest.mark.parametrize("count", [0, 1, 3, 8, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_gets_the_same_number_of_micro_batches(count: int, world_size: int) -> None:
    dealt = [deal(range(count), rank=r, world_size=world_size, micro_batch_size=3) for r in range(world_size)]
    assert len({len(d) for d in dealt}) == 1
    assert len(dealt[0]) >= 1
    assert sorted(row for d in dealt for micro in d for row in micro) == list(range(count))
    assert max((len(micro) for d in dealt for micro in d), default=0) <= 3


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 9), st.integers(0, 40), st.booleans())
def test_a_step_is_the_same_on_any_number_of_ranks(count: int, size: int, seed: int, step: int, sort: bool) -> None:
    """What a step computes must not depend on ranks and micro-batches: it is dealt out, never drawn per rank."""
    rows = StepSampler(count, size, seed).rows(step)
    assert len(rows) == len(set(rows)) <= size
    lengths = [(row * 37) % 11 for row in rows] if sort else None
    for world_size, micro_batch_size in ((1, 1), (1, 3), (2, 2), (3, 1), (5, 4)):
        dealt = [
            deal(rows, rank=r, world_size=world_size, micro_batch_size=micro_batch_size, lengths=lengths)
            for r in range(world_size)
        ]
        assert sorted(row for micros in dealt for micro in micros for row in micro) == sorted(rows)
        assert len({len(micros) for micros in dealt}) == 1
