"""Packing: which rows go together, and that a packed row has the loss of its demonstrations, family by family."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from data.collate import collate_demonstrations
from data.packing import PACKABLE, PackedRows, pack, packing_problem
from data.rows import Rows
from rlhf.models.attention import serve_on_cpu
from rlhf.models.causal_model import CausalModel
from tests.helpers.families import CHANGES, WINDOW, config_of
from tests.helpers.tiny import FAMILIES, random_lm, tiny_lm


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
    {"input_ids": [5, 6, 7, 2], "learned": [2, 4]},
    {"input_ids": [9, 2], "learned": [1, 2]},
    {"input_ids": [5, 8, 9], "learned": [1, 2, 2, 3]},
]
PACKS = [
    {"input_ids": [5, 6, 7, 2, 9, 2], "lengths": [4, 2], "learned": [2, 4, 5, 6]},
    {"input_ids": [5, 8, 9], "lengths": [3], "learned": [1, 2, 2, 3]},
]


def test_a_packed_row_restarts_positions_and_counts_by_demonstration() -> None:
    batch = collate_demonstrations(PACKS, pad_token_id=0)
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch.loss_mask_BT.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]
    # the first token of the second demonstration is not predicted from the first demonstration
    prompts_too = collate_demonstrations(PACKS, pad_token_id=0, train_on_prompt=True).loss_mask_BT
    assert prompts_too.int().tolist() == [[0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]


def packs_of_rows(rows: list[dict[str, Any]], capacity: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows in the order in which they are packed, and the packs."""
    order, starts = pack([len(row["input_ids"]) for row in rows], capacity)
    members = [[rows[i] for i in order[a:b]] for a, b in itertools.pairwise(starts)]
    table = {name: [row[name] for row in rows] for name in ("input_ids", "learned")}
    table["length"] = [len(row["input_ids"]) for row in rows]
    packed = PackedRows(Rows(Dataset.from_dict({**table, "source": [0] * len(rows)}), ["a"]), capacity)
    return [row for inside in members for row in inside], [packed[i] for i in range(len(packed))]


def logprobs(model: CausalModel, rows: list[dict[str, Any]], *, on_prompt: bool = False) -> torch.Tensor:
    """Of the counted tokens, in the order of the rows."""
    batch = collate_demonstrations(rows, pad_token_id=0, train_on_prompt=on_prompt)
    with torch.no_grad():
        return model(batch.input_ids_BT, batch.loss_mask_BT, position_ids_BT=batch.position_ids_BT).logprobs_N


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
        edges = torch.randint(1, length + 1, (4,), generator=generator).sort().values.tolist()  # two turns
        rows.append({"input_ids": ids, "learned": edges})
    ordered, packs = packs_of_rows(rows, 24)
    plain, packed = (logprobs(model, given, on_prompt=on_prompt) for given in (ordered, packs))
    torch.testing.assert_close(packed, plain, atol=2e-6, rtol=0)


# 1 to 20 tokens, in packs of up to 32; windows and chunks of the families are 8 tokens
LENGTHS = [20, 5, 17, 1, 12, 9, 3, 2]
WINDOWS = ("sliding_window", "window_size")


def sharp_lm(name: str, **more: Any) -> CausalModel:
    """A tiny model whose attention has something to say: queries and keys are far from 0."""
    lm: Any = random_lm(FAMILIES[name]() if name in FAMILIES else config_of(name, **more))
    with torch.no_grad():
        for parameter_name, parameter in lm.named_parameters():
            if any(part in parameter_name for part in ("q_proj", "k_proj", "v_proj", "qkv", "query", "c_attn")):
                parameter.mul_(3)
    serve_on_cpu(lm)
    return CausalModel(lm)


def difference(model: CausalModel) -> float:
    """Of the log-probabilities of packed rows and of rows one by one, the largest."""
    generator = torch.Generator().manual_seed(3)
    rows = [
        {"input_ids": torch.randint(3, 259, (n,), generator=generator).tolist(), "learned": [1, n]} for n in LENGTHS
    ]
    ordered, packs = packs_of_rows(rows, 32)
    assert max(len(p["lengths"]) for p in packs) > 2
    plain = torch.cat([logprobs(model, [row]) for row in ordered])
    return float((logprobs(model, packs) - plain).abs().max())


REFUSED = ["bloom", "falcon_alibi", "qwen3_next", "qwen3_5_text", "lfm2", "mamba", "falcon_h1", "bamba"]
TESTED = sorted({*FAMILIES, *CHANGES} - {*REFUSED, "llama4_text"})


@pytest.mark.parametrize("name", TESTED)
def test_every_family_that_is_packed_says_of_packed_rows_what_it_says_of_each(name: str) -> None:
    """One mask for all kinds of layers made attention with a window full attention: 0.07 to 0.75 nats off."""
    model = sharp_lm(name)
    assert packing_problem(model.config.to_dict()) is None
    assert difference(model) < 2e-6
    if windows := [key for key in WINDOWS if getattr(model.config, key, None) == WINDOW]:
        ids = torch.randint(3, 259, (1, 20), generator=torch.Generator().manual_seed(4))
        row = [{"input_ids": ids[0].tolist(), "learned": [1, 20]}]
        wide = sharp_lm(name, **{windows[0]: 128})
        assert (logprobs(model, row) - logprobs(wide, row)).abs().max() > 1e-4, "the window does not bite"


def test_no_family_is_packed_without_such_a_test() -> None:
    tested = {(FAMILIES[n]() if n in FAMILIES else config_of(n)).model_type for n in TESTED}
    assert tested == PACKABLE


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_whose_demonstrations_would_mix_is_refused(name: str) -> None:
    """Biases made from a [B, T] mask, a convolution or a recurrent state: what comes before in the row counts. Should
    one of them ever agree, its refusal can go."""
    model = sharp_lm(name)
    assert "step1_sft.packing is not tested with" in str(packing_problem(model.config.to_dict()))
    try:
        assert difference(model) > 1e-4
    except ValueError:
        assert name in ("bloom", "falcon_alibi")  # they cannot take the mask


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "rwkv"}, "not tested with models of type rwkv"),
        ({}, "not tested with a model whose config.json has no model_type"),
        ({"model_type": "falcon", "alibi": True}, "not tested with models of type falcon with ALiBi"),
        ({"model_type": "llama", "layer_types": ["full_attention", "conv"]}, "not tested with layers of type conv"),
        (
            {"model_type": "gemma3", "text_config": {"layer_types": ["linear_attention"]}},
            "not tested with layers of type linear_attention",
        ),
        ({"model_type": "falcon", "alibi": False}, None),
    ],
)
def test_refusals_name_what_is_not_tested(config: dict[str, Any], message: str | None) -> None:
    found = packing_problem(config)
    assert found is None if message is None else message in str(found)
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) >= PACKABLE
