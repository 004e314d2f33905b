from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.blend import blend, first_of_each, is_held_out, stage_of
from data.example import prompt_hash
from rlhf.errors import DataError

KEYS = np.array([prompt_hash([{"role": "user", "content": f"question {i}"}]) for i in range(4000)], dtype=np.uint64)


def test_the_hash_of_a_prompt_never_changes() -> None:
    """These numbers are on users' disks as splits: a change here would move rows between stages."""
    assert prompt_hash([{"role": "user", "content": "What is 2 + 3?"}]) == 5292655613192670716
    assert stage_of(KEYS[:12], (2, 4, 4), seed=0).tolist() == [3, 3, 3, 3, 1, 1, 1, 1, 2, 2, 3, 2]
    assert np.flatnonzero(is_held_out(KEYS[:100], 0.05, seed=0)).tolist() == [91, 92]


def test_shares_are_those_asked_for() -> None:
    stages = stage_of(KEYS, (2, 4, 4), seed=1)
    assert np.allclose([np.mean(stages == s) for s in (1, 2, 3)], [0.2, 0.4, 0.4], atol=0.03)
    assert abs(is_held_out(KEYS, 0.05, seed=1).mean() - 0.05) < 0.015
    # held out independently of the stage
    assert abs(is_held_out(KEYS, 0.5, seed=1)[stages == 1].mean() - 0.5) < 0.06


def test_a_share_of_zero_gets_nothing() -> None:
    assert set(stage_of(KEYS, (1, 0, 0), seed=0)) == {1}
    assert set(stage_of(KEYS, (0, 1, 1), seed=0)) == {2, 3}


def test_first_of_each() -> None:
    assert first_of_each(np.array([7, 3, 7, 3, 1])).tolist() == [True, True, False, False, True]


def sources(*counts: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rows = [np.arange(c) for c in counts]
    return rows, [np.arange(c, dtype=np.uint64) * 7 + 100_000 * i for i, c in enumerate(counts)]


def test_without_weights_every_row_is_used_once_and_evenly_spread() -> None:
    table = blend(*sources(300, 100), None, seed=0)
    assert len(np.unique(table, axis=0)) == 400
    assert (table[:40, 0] == 1).sum() == 10  # the first tenth also has a quarter of the second source


def test_weights_are_shares_of_the_blend_and_no_row_comes_twice() -> None:
    # Of 300 and 100 rows in equal shares, 100 each: the smaller source runs out.
    table = blend(*sources(300, 100), [1, 1], seed=0)
    assert np.bincount(table[:, 0]).tolist() == [100, 100]
    assert len(np.unique(table, axis=0)) == 200
    assert np.bincount(blend(*sources(300, 100), [1, 1], seed=0, limit=50)[:, 0]).tolist() == [25, 25]


def test_a_weight_of_zero_leaves_a_source_out() -> None:
    assert set(blend(*sources(30, 10), [0, 3], seed=0)[:, 0]) == {1}


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_bad_weights_are_named(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights of the sources are"):
        blend(*sources(3, 3), weights, seed=0)


texts = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(texts, texts, st.integers(0, 5), st.tuples(*[st.integers(0, 5)] * 3).filter(any))
def test_added_rows_move_no_other_row(old: list[str], new: list[str], seed: int, shares: tuple[int, int, int]) -> None:
    keys = np.array([prompt_hash([{"role": "user", "content": t}]) for t in old + new], dtype=np.uint64)
    before, after = stage_of(keys[: len(old)], shares, seed=seed), stage_of(keys, shares, seed=seed)
    assert (after[: len(old)] == before).all()
    assert set(after) <= {1, 2, 3}
    # the same prompt is in one stage wherever it stands
    assert all(len(set(after[keys == key])) == 1 for key in keys)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 8)), min_size=1, max_size=4).filter(
        lambda s: sum(w for _, w in s) > 0
    ),
    st.integers(0, 3),
)
def test_a_blend_keeps_its_shares_and_never_repeats(counted: list[tuple[int, float]], seed: int) -> None:
    counts, weights = [c for c, _ in counted], [w for _, w in counted]
    rows, keys = sources(*counts)
    table = blend(rows, keys, weights, seed=seed)
    assert len(np.unique(table, axis=0)) == len(table)
    got = np.bincount(table[:, 0], minlength=len(counts))
    usable = np.array([w if c else 0 for c, w in counted])
    if usable.sum() > 0:
        assert np.abs(got - usable / usable.sum() * got.sum()).max() <= len(counts) + 1
    assert (got <= counts).all()
    # the row numbers do not matter, only the content: a shuffled file gives the same blend
    order = [np.random.default_rng(seed).permutation(c) for c in counts]
    shuffled = blend(rows, [k[o] for k, o in zip(keys, order, strict=True)], weights, seed=seed)
    assert [keys[s][order[s][r]] for s, r in shuffled] == [keys[s][r] for s, r in table]
