"""The hybrid engine: after each round of training, what generates is what was trained, and its memory comes back."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf import process
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.models.export import export
from rlhf.training import cpu, distributed
from rlhf.training.engine import TrainEngine
from step3_ppo.hybrid.engine import HybridEngine
from step3_ppo.hybrid.inference_copy import InferenceCopy
from step3_ppo.hybrid.packed_linear import PackedLinear, can_pack
from tests.helpers import engines
from tests.helpers.engines import adapted
from tests.helpers.tiny import FAMILIES, tiny_lm, tiny_tokenizer

pytestmark = pytest.mark.gpu
PAD = 0
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17], [8, 8, 8, 90, 41]]
IDS = torch.tensor([[5, 9, 200, 31, 60, 7], [8, 8, 90, 41, 12, 13]])
LOGIT_BOUND = {torch.float32: 2e-5, torch.bfloat16: 0.15}


def train_round(train: TrainEngine) -> None:
    engines.backward(train, range(engines.ROWS), micro_batch_size=4)
    assert train.step().applied


def trained_logits(train: TrainEngine) -> torch.Tensor:
    train.train(False)
    with torch.no_grad():
        return train.module.lm(input_ids=IDS.to(distributed.device()), use_cache=False).logits.float()


def copied_logits(hybrid: HybridEngine) -> torch.Tensor:
    assert hybrid.copy is not None
    with torch.no_grad():
        return hybrid.copy.lm(input_ids=IDS.to(distributed.device()), use_cache=False).logits.float()


WITH_ADAPTERS = ("opt", "llama", "gpt2", "bloom", "mixtral", "qwen3_moe", "deepseek_v3")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "lora"), [*((f, False) for f in FAMILIES), *((f, True) for f in WITH_ADAPTERS)])
def test_copy_and_trained_model_agree_after_each_round(one_rank: None, family: str, lora: bool) -> None:
    """Three rounds of train → refresh: logits and greedy tokens of the copy are the trained model's. ZeRO-3, so that
    each module is gathered; the copy is in fp32 like the training weights."""
    model = tiny_lm(family)
    train = engines.engine(3, model=adapted(model) if lora else model, peak=0.01)
    hybrid = HybridEngine(train, pad_token_id=PAD, inference_dtype="fp32")
    greedy = Sampling(max_new_tokens=8, temperature=0)
    before = generation = None
    for _ in range(3):
        train_round(train)
        with hybrid.generating() as sampler:
            generation = sampler.generate(PROMPTS, greedy)
            copied = copied_logits(hybrid)
        torch.testing.assert_close(copied, trained_logits(train), atol=LOGIT_BOUND[torch.float32], rtol=0)
        assert before is None or not torch.equal(before, copied), "training must have moved the weights"
        before = copied
    direct = Sampler(train.module, pad_token_id=PAD, synced=True).generate(PROMPTS, greedy)
    assert generation is not None and generation.responses() == direct.responses()


@pytest.mark.parametrize("zero_stage", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_bf16_copy_of_fp32_weights_stays_within_rounding(one_rank: None, zero_stage: int, lora: bool) -> None:
    """The copy is rounded once from base + delta, so the distance does not grow with the rounds."""
    model = tiny_lm("llama")
    train = engines.engine(zero_stage, model=adapted(model) if lora else model)
    hybrid = HybridEngine(train, pad_token_id=PAD, inference_dtype="bf16")
    for _ in range(3):
        train_round(train)
        with hybrid.generating():
            assert next(hybrid.copy.lm.parameters()).dtype == torch.bfloat16  # type: ignore[union-attr]
            copied = copied_logits(hybrid)
        torch.testing.assert_close(copied, trained_logits(train), atol=LOGIT_BOUND[torch.bfloat16], rtol=0)


def test_no_copy_where_both_layouts_are_the_same(one_rank: None) -> None:
    """One rank's tensor parallelism, ZeRO up to 2, equal dtypes and no adapters: the training weights generate."""
    for zero_stage in (0, 1, 2):
        same = HybridEngine(engines.engine(zero_stage), pad_token_id=PAD, inference_dtype="fp32")
        assert same.copy is None
        with same.generating() as sampler:
            assert sampler.lm is same.train.module.lm
    for train, options in (
        (engines.engine(3), {"inference_dtype": "fp32"}),
        (engines.engine(1), {"inference_dtype": "bf16"}),
        (engines.engine(1, model=adapted(tiny_lm())), {"inference_dtype": "fp32"}),
    ):
        assert HybridEngine(train, pad_token_id=PAD, **options).copy is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_without_a_copy_the_training_module_generates(one_rank: None, zero_stage: int, lora: bool) -> None:
    train = engines.engine(zero_stage, model=adapted(tiny_lm()) if lora else tiny_lm())
    hybrid = HybridEngine(train, pad_token_id=PAD, inference_copy="off")
    assert hybrid.copy is None
    greedy = Sampling(max_new_tokens=8, temperature=0)
    with hybrid.generating() as sampler:
        found = sampler.generate(PROMPTS, greedy).responses()
    with HybridEngine(train, pad_token_id=PAD, inference_dtype="fp32").generating() as sampler:
        assert sampler.generate(PROMPTS, greedy).responses() == found


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3"])
def test_export_and_copy_merge_adapters_alike_bit_by_bit(
    one_rank: None, family: str, zero_stage: int, tmp_path: Path
) -> None:
    """In bf16, too: what was exported is what has generated. GPT-2's weights stand the other way round,
    deepseek's experts are stacked, and its router has a saved buffer."""
    model = adapted(tiny_lm(family).bfloat16())
    train = engines.engine(zero_stage, model=model, dtype=torch.bfloat16)
    train_round(train)
    copied = InferenceCopy(train.module.lm, dtype=torch.bfloat16, device=distributed.device(), group=None, packed=False)
    copied.refresh()
    export(train.module.lm, tmp_path / "model", tokenizer=tiny_tokenizer())
    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    weights = exported.state_dict()
    assert weights.keys() == copied.lm.state_dict().keys()
    for name, tensor in copied.lm.state_dict().items():
        assert torch.equal(tensor.cpu(), weights[name]), name


def resident_bytes() -> int:
    """What this process holds of the machine's memory, as the system counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's process table")
def test_memory_returns_after_release_and_nothing_grows(one_rank: None) -> None:
    """Ten flips of a copy of 27 MB: its memory and the cache's are gone after each, and no flip leaves anything."""
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8
    )
    hybrid = HybridEngine(engines.engine(1, model=LlamaForCausalLM(config)), pad_token_id=PAD, inference_dtype="bf16")
    inside, after = [], []
    gc.collect()
    for _ in range(10):
        with hybrid.generating() as sampler:
            sampler.generate(PROMPTS, Sampling(max_new_tokens=4))
            inside.append(resident_bytes())
        cpu.return_freed()
        after.append(resident_bytes())
    assert hybrid.copy is not None
    assert hybrid.copy.bytes() > 25e6
    held = [now - then for now, then in zip(inside[1:], after, strict=False)]
    assert min(held) > 0.9 * hybrid.copy.bytes(), f"inside, over what is held outside: {held}"
    assert max(after[2:]) - after[1] < 3e6, f"held after each flip: {after}"


def test_kept_copy_and_cache_are_used_again(one_rank: None) -> None:
    """Without release the storage stays, and a refresh still brings the new weights."""
    train = engines.engine(1)
    hybrid = HybridEngine(train, pad_token_id=PAD, inference_dtype="bf16", release=False)
    with hybrid.generating() as sampler:
        sampler.generate(PROMPTS, Sampling(max_new_tokens=8))
        places = [p.data_ptr() for p in hybrid.copy.lm.parameters()]  # type: ignore[union-attr]
        cached = sampler.cache.layers[0].keys.data_ptr()
        old = copied_logits(hybrid)
    train_round(train)
    with hybrid.generating() as sampler:
        sampler.generate(PROMPTS[:2], Sampling(max_new_tokens=4))
        assert [p.data_ptr() for p in hybrid.copy.lm.parameters()] == places  # type: ignore[union-attr]
        assert sampler.cache.layers[0].keys.data_ptr() == cached
        assert not torch.equal(copied_logits(hybrid), old)


def test_a_kept_cache_does_not_shrink_the_room_of_the_next(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that stayed counted as used, so each rollout without release went in smaller groups than the last."""
    hybrid = HybridEngine(engines.engine(1), pad_token_id=PAD, release=False)
    cache = hybrid._sampler.cache
    monkeypatch.setattr(distributed, "free_memory", lambda: 10_000_000 - cache.bytes())
    rooms = []
    for _ in range(2):
        with hybrid.generating() as sampler:
            sampler.generate(PROMPTS, Sampling(max_new_tokens=4))
            rooms.append(sampler._cache_bytes)
    assert cache.bytes() > 0
    assert rooms == [6_000_000 // process.local_world_size()] * 2


def test_tied_embeddings_are_held_once() -> None:
    lm = tiny_lm("qwen2")
    held = InferenceCopy(lm, dtype=torch.float32, device=torch.device("cpu"), group=None, packed=False)
    held.refresh()
    assert held.lm.get_input_embeddings().weight is held.lm.get_output_embeddings().weight
    assert held.bytes() == sum(p.numel() * 4 for p in lm.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "hunyuan_v1_moe", "mamba"])
def test_packed_layers_say_what_plain_ones_say(family: str, dtype: torch.dtype) -> None:
    """Weights in the order of the kernels: another layout of memory, the same numbers up to the order of sums.

    hunyuan asks its router's weight for the dtype, which a packed layer did not have. mamba multiplies with a layer's
    weight itself, which was empty, so its PPO crashed.
    """
    lm = tiny_lm(family)
    logits = []
    for packed in (True, False):
        held = InferenceCopy(lm, dtype=dtype, device=torch.device("cpu"), group=None, packed=packed)
        held.refresh()
        count = sum(isinstance(module, PackedLinear) for module in held.lm.modules())
        assert (count > 0) == (packed and can_pack(dtype, torch.device("cpu")))
        with torch.no_grad():
            logits.append(held.lm(input_ids=IDS, use_cache=False).logits.float())
        held.release()
    torch.testing.assert_close(*logits, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


def test_times_of_a_flip_are_reported(one_rank: None) -> None:
    hybrid = HybridEngine(engines.engine(1), pad_token_id=PAD, inference_dtype="bf16")
    with hybrid.generating() as sampler:
        sampler.generate(PROMPTS, Sampling(max_new_tokens=2))
    figures = hybrid.timings()
    assert figures["time/flip"] == figures["time/refresh"] + figures["time/release"] > 0
