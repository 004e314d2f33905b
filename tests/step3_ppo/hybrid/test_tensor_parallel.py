"""Tensor parallelism of the inference copy, on two and four ranks: the same logits and tokens as the whole model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig

from rlhf.errors import ConfigError
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.training import distributed
from step3_ppo.hybrid.engine import HybridEngine
from step3_ppo.hybrid.inference_copy import InferenceCopy
from step3_ppo.hybrid.tensor_parallel import ShardedLinear
from step3_ppo.rollout import roll_out
from tests.helpers import engines
from tests.helpers.cut_families import MORE_FAMILIES
from tests.helpers.engines import adapted
from tests.helpers.tiny import FAMILIES, random_lm, tiny_lm

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
                share = _share_of_cut_layers(hybrid.copy.lm, tiny_lm(family))  # type: ignore[union-attr]
            assert abs(share - 1 / tensor_parallel) < 0.01, f"{family}: a rank holds {share:.2f} of the layers"
            train.train(False)
            with torch.no_grad():
                whole = train.module.lm(input_ids=IDS, attention_mask=ATTENTION, use_cache=False).logits.float()
            furthest = max(furthest, float((cut - whole)[ATTENTION.bool()].abs().max()))
        synced = Sampler(train.module, pad_token_id=PAD, synced=zero_stage == 3)
        equal = responses == _responses(synced, greedy)
        results.append((family, furthest, equal))
    return results


def _share_of_cut_layers(copied: Any, whole: Any) -> float:
    cut = {name: module.weight.numel() for name, module in copied.named_modules() if isinstance(module, ShardedLinear)}
    return sum(cut.values()) / sum(whole.get_submodule(name).weight.numel() for name in cut)


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


def _refused(changes: dict[str, Any]) -> str:
    lm = random_lm(LlamaConfig(**{**FAMILIES["llama"]().to_dict(), **changes}))
    try:
        HybridEngine(engines.engine(1, model=lm), pad_token_id=PAD, tensor_parallel=2)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_size_that_does_not_divide_is_refused_with_those_that_do(run_ranks: RunRanks) -> None:
    """As the plan says it, but of the model as it is."""
    for said in run_ranks(_refused, {"num_key_value_heads": 1}):
        assert said == (
            "step3_ppo.inference_tp_size=2 does not divide the attention of the actor (4 heads, 1 key-value heads); "
            "try 1"
        )


@torch.no_grad()
def _copies(families: list[str]) -> list[tuple[str, float, float, bool]]:
    """Of each family: how far the copy's logits are from the whole model's, by the largest of them; the share of the
    weights between the embeddings that a rank holds; whether greedy tokens are those of the whole model."""
    results = []
    for family in families:
        whole = random_lm(MORE_FAMILIES[family]())
        held = InferenceCopy(whole, dtype=torch.float32, device=torch.device("cpu"), group=dist.group.WORLD)
        held.refresh()
        greedy = Sampling(max_new_tokens=6, temperature=0)
        cut, expected = (Sampler(lm, pad_token_id=PAD).generate(PROMPTS, greedy).responses() for lm in (held.lm, whole))
        share = _between_embeddings(held.lm) / _between_embeddings(whole)
        results.append((family, _distance(held.lm, whole), share, cut == expected))
    return results


def _trained_copies(cases: list[tuple[str, bool]]) -> list[tuple[str, float, float, bool]]:
    """The same of each (family, LoRA) after a step under ZeRO-3, when every rank holds a part of each weight."""
    results = []
    for family, lora in cases:
        whole = random_lm(MORE_FAMILIES[family]())
        count = _between_embeddings(whole)
        train = engines.engine(3, model=adapted(whole) if lora else whole)
        hybrid = HybridEngine(train, pad_token_id=PAD, tensor_parallel=2, inference_dtype="fp32")
        engines.backward(train, range(4), micro_batch_size=2)
        assert train.step().applied
        greedy = Sampling(max_new_tokens=3, temperature=0)
        with hybrid.generating() as sampler, torch.no_grad():
            assert hybrid.copy is not None
            distance = _distance(hybrid.copy.lm, train.module.lm)
            share = _between_embeddings(hybrid.copy.lm) / count
            responses = _responses(sampler, greedy)
        synced = Sampler(train.module, pad_token_id=PAD, synced=True)
        results.append((family, distance, share, responses == _responses(synced, greedy)))
    return results


def _distance(copied: Any, whole: Any) -> float:
    cut, expected = (lm(input_ids=IDS, attention_mask=ATTENTION, use_cache=False).logits for lm in (copied, whole))
    return float((cut - expected)[ATTENTION.bool()].abs().max() / expected.abs().max())


def _between_embeddings(lm: Any) -> int:
    ends = {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}
    return sum(parameter.numel() for parameter in lm.parameters()) - sum(end.numel() for end in ends)


# Where more stays whole than routers and norms: embeddings of positions and of layers, shared experts, the latents of
# the attention, what sees images.
MOSTLY_WHOLE = {
    "qwen2_moe": 0.65,
    "deepseek_v2": 0.7,
    "deepseek_v3": 0.75,
    "gemma4_text": 0.65,
    "gemma3": 0.85,
    "gpt_neo": 0.7,
    "biogpt": 0.7,
}


def _check(results: list[tuple[str, float, float, bool]]) -> None:
    for family, distance, share, equal in results:
        assert distance < 1e-6, f"{family}: {distance}"
        assert share < MOSTLY_WHOLE.get(family, 0.6), f"{family}: a rank holds {share:.2f} of the weights"
        assert equal, f"{family}: greedy tokens differ"


def test_more_families_are_cut_right(run_ranks: RunRanks) -> None:
    """Every style of a cut: gathered outputs, fused experts, sinks, biases that are added before a sum."""
    for results in run_ranks(_copies, list(MORE_FAMILIES), timeout=300):
        _check(results)


def test_every_style_of_a_cut_takes_trained_weights_and_adapters(run_ranks: RunRanks) -> None:
    cases = [("olmo2", True), ("gpt_oss", True), ("phi3", False), ("qwen3_moe", False), ("granite_swa", False)]
    for results in run_ranks(_trained_copies, cases, timeout=300):
        _check(results)
