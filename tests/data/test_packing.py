from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.collate import collate_demonstrations
from data.packing import pack, packing_problem
from rlhf.models.causal_model import CausalModel
from tests.helpers.tiny import tiny_lm


def packs_of(lengths: list[int], capacity: int) -> list[list[int]]:
    order, starts = pack(lengths, capacity)
    return [[lengths[i] for i in order[a:b]] for a, b in itertools.pairwise(starts)]


def test_long_rows_first_and_each_where_it_fits_best() -> None:
    assert packs_of([2, 3, 5, 4], 7) == [[5, 2], [4, 3]]
    assert packs_of([7, 6, 1], 7) == [[7], [6, 1]]
    assert packs_of([], 7) == []


def test_a_row_larger_than_a_pack_is_an_error() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit a pack of 8"):
        pack([3, 9], 8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60))
def test_packs_hold_every_row_once_and_no_more_than_they_can(lengths: list[int]) -> None:
    order, _starts = pack(lengths, 20)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    packs = packs_of(lengths, 20)
    assert all(0 < sum(p) <= 20 for p in packs)
    assert sum(sum(p) <= 10 for p in packs) <= 1  # two half-empty packs would have been one


ROWS = [
    {"input_ids": [5, 6, 7, 2], "prompt_length": 2},
    {"input_ids": [9, 2], "prompt_length": 1},
    {"input_ids": [5, 8, 9], "prompt_length": 1},
]
PACKS = [
    {"input_ids": [5, 6, 7, 2, 9, 2], "lengths": [4, 2], "prompt_lengths": [2, 1]},
    {"input_ids": [5, 8, 9], "lengths": [3], "prompt_lengths": [1]},
]


def test_a_packed_row_restarts_positions_and_looks_at_its_own_demonstration() -> None:
    batch = collate_demonstrations(PACKS, pad_token_id=0)
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch.loss_mask_BT.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]
    assert batch.packed_mask_B1TT is not None
    assert batch.packed_mask_B1TT[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert batch.packed_mask_B1TT.any(dim=-1).all()  # no token looks at nothing
    # the first token of the second demonstration is not predicted from the first demonstration
    prompts_too = collate_demonstrations(PACKS, pad_token_id=0, train_on_prompt=True).loss_mask_BT
    assert prompts_too.int().tolist() == [[0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=6), st.integers(0, 99), st.booleans())
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "opt_projected", "gpt2", "gpt_neox"])
def test_the_loss_of_packed_rows_is_that_of_the_rows(
    family: str, lengths: list[int], seed: int, on_prompt: bool
) -> None:
    model, generator = CausalModel(tiny_lm(family)), torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 259, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "prompt_length": int(torch.randint(1, length, (1,), generator=generator))})
    order, starts = pack(lengths, 24)
    packs = []
    for a, b in itertools.pairwise(starts):
        members = [rows[i] for i in order[a:b]]
        packs.append(
            {
                "input_ids": [i for m in members for i in m["input_ids"]],
                "lengths": [len(m["input_ids"]) for m in members],
                "prompt_lengths": [m["prompt_length"] for m in members],
            }
        )

    def loss(batch_rows: list[dict]) -> tuple[float, int]:
        batch = collate_demonstrations(batch_rows, pad_token_id=0, train_on_prompt=on_prompt)
        with torch.no_grad():
            scores = model(batch.input_ids_BT, batch.loss_mask_BT, **batch.packed_inputs(torch.float32))
        return -float(scores.logprobs_N.double().sum()), int(batch.loss_mask_BT.sum())

    (plain, count), (packed, packed_count) = loss(rows), loss(packs)
    assert packed_count == count
    assert packed / count == pytest.approx(plain / count, abs=1e-5)


def test_bloom_is_refused_because_it_cannot_take_the_mask() -> None:
    """Its biases are made from a [B, T] mask. Should it ever take ours, the refusal can go."""
    assert "does not work with bloom" in str(packing_problem("bloom"))
    assert packing_problem("llama") is None
    batch = collate_demonstrations(PACKS, pad_token_id=0)
    with pytest.raises((RuntimeError, ValueError)):
        CausalModel(tiny_lm("bloom"))(batch.input_ids_BT, batch.loss_mask_BT, **batch.packed_inputs(torch.float32))
