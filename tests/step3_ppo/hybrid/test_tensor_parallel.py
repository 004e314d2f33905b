"""Tensor parallelism of the inference copy, on two and four ranks: the same logits and tokens as the whole model."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf.errors import ConfigError
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.training import distributed
from step3_ppo.hybrid.engine import HybridEngine
from step3_ppo.hybrid.parallel_sizes import CUTTABLE, parallel_problems, sizes_that_divide
from step3_ppo.hybrid.tensor_parallel import family_of, style_of
from step3_ppo.rollout import roll_out
from tests.helpers import engines
from tests.helpers.engines import adapted
from tests.helpers.tiny import FAMILIES, tiny_lm

RunRanks = Callable[..., list[Any]]
PAD = 0
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17], [8, 8, 8, 90, 41], [3, 4], [50, 51, 52]]
IDS = torch.tensor([[5, 9, 200, 31, 60, 7], [8, 8, 90, 41, 12, 13]])
ATTENTION = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def _model(family: str, lora: bool) -> Any:
    model = tiny_lm(family)
    return adapted(model) if lora else model


def _responses(sampler: Any, sampling: Sampling) -> list[list[int]]:
    return roll_out(sampler, PROMPTS, sampling, messages=[""] * len(PROMPTS), seed=1, iteration=0).responses


def _three_rounds(
    cases: list[tuple[str, int, bool]], tensor_parallel: int, dtype: str
) -> list[tuple[str, float, bool]]:
    """Of each (family, ZeRO stage, LoRA): the largest distance of logits from the trained model's over three rounds,
    and whether the last round's greedy rollout was that of the whole model."""
    results = []
    for family, zero_stage, lora in cases:
        train = engines.engine(zero_stage, model=_model(family, lora))
        hybrid = HybridEngine(train, pad_token_id=PAD, tensor_parallel=tensor_parallel, inference_dtype=dtype)
        furthest, responses = 0.0, []
        greedy = Sampling(max_new_tokens=8, temperature=0, stop_token_ids=(40, 41, 42, 43))
        for _ in range(3):
            engines.backward(train, range(engines.ROWS), micro_batch_size=4)
            assert train.step().applied
            with hybrid.generating() as sampler, torch.no_grad():
                cut = hybrid.copy.lm(input_ids=IDS, attention_mask=ATTENTION, use_cache=False).logits.float()  # type: ignore[union-attr]
                responses = _responses(sampler, greedy)
                share = _cut_weights(hybrid.copy.lm) / _cut_weights(tiny_lm(family))  # type: ignore[union-attr]
            assert abs(share - 1 / tensor_parallel) < 0.01, f"{family}: a rank holds {share:.2f} of the layers"
            train.train(False)
            with torch.no_grad():
                whole = train.module.lm(input_ids=IDS, attention_mask=ATTENTION, use_cache=False).logits.float()
            furthest = max(furthest, float((cut - whole)[ATTENTION.bool()].abs().max()))
        synced = Sampler(train.module, pad_token_id=PAD, synced=zero_stage == 3)
        equal = responses == _responses(synced, greedy)
        results.append((family, furthest, equal))
    return results


def _cut_weights(lm: Any) -> int:
    """Entries of the weights that a plan cuts."""
    family = family_of(lm.config)
    return sum(module.weight.numel() for name, module in lm.named_modules() if style_of(family, name))


def test_two_ranks_generate_what_the_whole_model_says(run_ranks: RunRanks) -> None:
    """Every family under ZeRO-3, OPT and Llama at each ZeRO stage, adapters on some: fp32 logits within 2e-5."""
    cases = [(family, 3, False) for family in FAMILIES]
    cases += [(family, stage, False) for family in ("opt", "llama") for stage in (0, 1, 2)]
    cases += [(family, 3, True) for family in ("opt", "qwen2", "gpt2", "gpt_neox", "bloom")]
    for results in run_ranks(_three_rounds, cases, 2, "fp32", timeout=400):
        for family, furthest, equal in results:
            assert furthest < 2e-5, f"{family}: {furthest}"
            assert equal, f"{family}: greedy tokens differ"


def test_four_ranks_as_two_groups_of_two(run_ranks: RunRanks) -> None:
    cases = [("opt", 3, False), ("llama", 3, False), ("llama", 1, True)]
    for results in run_ranks(_three_rounds, cases, 2, "fp32", world_size=4, timeout=400):
        for family, furthest, equal in results:
            assert furthest < 2e-5, f"{family}: {furthest}"
            assert equal, f"{family}: greedy tokens differ"


def test_two_ranks_in_bf16_stay_within_rounding(run_ranks: RunRanks) -> None:
    """Partial sums are rounded to bf16 before they are added, so the bound is that of bf16 logits."""
    for results in run_ranks(_three_rounds_bf16, timeout=200):
        assert max(results) < 0.15


def _three_rounds_bf16() -> list[float]:
    return [furthest for _, furthest, _ in _three_rounds([("llama", 3, False), ("opt", 1, True)], 2, "bf16")]


def _sampled(tensor_parallel: int) -> list[list[int]]:
    train = engines.engine(1, model=tiny_lm("llama"))
    hybrid = HybridEngine(train, pad_token_id=PAD, tensor_parallel=tensor_parallel, inference_dtype="fp32")
    with hybrid.generating() as sampler:
        return _responses(sampler, Sampling(max_new_tokens=10, stop_token_ids=(7, 19, 45, 100)))


def test_samples_do_not_depend_on_the_number_of_ranks(run_ranks: RunRanks) -> None:
    """Random numbers belong to global rows: one rank, two ranks with a copy each, two that share one copy."""
    (alone,) = run_ranks(_sampled, 1, world_size=1)
    assert run_ranks(_sampled, 1) == [alone, alone]
    assert run_ranks(_sampled, 2) == [alone, alone]


def _die_in_refresh(folder: str) -> None:
    train = engines.engine(3, model=tiny_lm("llama"))
    hybrid = HybridEngine(train, pad_token_id=PAD, tensor_parallel=2, inference_dtype="fp32")
    began = time.monotonic()
    if distributed.rank() == 1:
        os._exit(9)
    try:
        with hybrid.generating():
            pass
        outcome = "went on"
    except Exception as error:
        outcome = type(error).__name__
    Path(folder, "outcome.json").write_text(json.dumps([outcome, time.monotonic() - began]))


def test_a_rank_that_dies_in_a_refresh_ends_the_others(run_ranks: RunRanks, tmp_path: Path) -> None:
    """The survivor gets an error, not a wait without end."""
    with pytest.raises(AssertionError, match="rank 1 gave no answer"):
        run_ranks(_die_in_refresh, str(tmp_path), timeout=60)
    outcome, seconds = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome.endswith("Error")
    assert seconds < 60


def _refused(size: int, family: str) -> str:
    try:
        HybridEngine(engines.engine(1, model=tiny_lm(family)), pad_token_id=PAD, tensor_parallel=size)
    except ConfigError as error:
        return str(error)
    return ""


def test_sizes_that_do_not_divide_are_refused_with_those_that_do(run_ranks: RunRanks) -> None:
    assert "try 1, 2" in run_ranks(_refused, 3, "llama", world_size=2)[0]
    config: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 96}
    assert sizes_that_divide(config) == [1, 2, 4]
    assert sizes_that_divide({"n_head": 6, "n_embd": 48}) == [1, 2, 3, 6]
    assert sizes_that_divide({"num_attention_heads": 8, "ffn_dim": 12}) == [1, 2, 4]
    config |= {"model_type": "llama"}
    assert parallel_problems(config, model="m", size=2) == []
    (problem,) = parallel_problems(config, model="m", size=3)
    assert problem == (
        "step3_ppo.inference_tp_size=3 does not divide the attention of m (12 heads, 4 key-value heads); try 1, 2, 4"
    )


def test_a_family_without_a_plan_is_refused() -> None:
    class Config:
        model_type = "mamba"
        base_model_tp_plan = None

    with pytest.raises(ConfigError, match=r"type mamba cannot be cut .* use 1"):
        family_of(Config())


def test_the_table_of_families_is_that_of_the_installed_transformers() -> None:
    """A plan is checked without transformers, so the families that can be cut stand in a table of our own."""
    known = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]
    cut = set()
    for name in known:
        with contextlib.suppress(ConfigError):
            family_of(SimpleNamespace(model_type=name, base_model_tp_plan=CONFIG_MAPPING[name].base_model_tp_plan))
            cut.add(name)
    assert cut == CUTTABLE & set(known), "bring CUTTABLE in step3_ppo/hybrid/parallel_sizes.py up to date"
