"""What a flip and a token cost on a GPU: collectives, copies, kernels and waits are counted, and bytes come back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.training import distributed
from step3_ppo.hybrid.engine import HybridEngine
from tests.helpers import engines
from tests.helpers.gpu import is_real
from tests.helpers.tiny import FAMILIES, random_lm, tiny_lm
from tests.pretend import card

pytestmark = pytest.mark.slow
OnGPU = Callable[..., list[Any]]
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17], [8, 8, 8, 90, 41]]
counted_on_pretence = pytest.mark.skipif(is_real(), reason="only the pretended GPU counts")


# --- a flip -----------------------------------------------------------------------------------------------------------

FLIPS, LAYERS = 3, 2


def _settled() -> int:
    """Bytes on the device when gloo's threads, on the pretended GPU, have let go of the last collectives' tensors."""
    distributed.barrier()
    time.sleep(0.1)
    return torch.cuda.memory_allocated()


def _flips(zero_stage: int, tensor_parallel: int) -> dict[str, Any]:
    """Three rounds of training, refresh, sampling, release: bytes outside, bytes inside beyond copy and cache, and the
    collectives of each refresh. Matrices are so large that DeepSpeed shards them (more than 100,000 numbers)."""
    wide = LlamaConfig(
        vocab_size=320, hidden_size=320, intermediate_size=320, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    train = engines.engine(zero_stage, model=random_lm(wide), dtype=torch.bfloat16)
    hybrid = HybridEngine(
        train, pad_token_id=0, inference_copy="on", inference_dtype="bf16", tensor_parallel=tensor_parallel
    )
    first = len(PROMPTS) * distributed.rank()
    assert hybrid.copy is not None
    outside, beyond, gathers = [], [], []
    for _ in range(FLIPS):
        engines.backward(train, range(engines.ROWS), 4)
        assert train.step().applied
        train.train(False)
        outside.append(_settled())
        before = Counter(card.collectives)
        with hybrid.generating() as sampler:
            gathers.append(sum((card.collectives - before).values()))
            sampler.generate(PROMPTS, Sampling(max_new_tokens=4), rows=range(first, first + len(PROMPTS)))
            own = hybrid.copy.bytes() + hybrid._sampler.cache.bytes()
            beyond.append(torch.cuda.memory_allocated() - outside[-1] - own)
        outside.append(_settled())
    return {"outside": outside, "beyond": beyond, "gathers": gathers}


@pytest.mark.parametrize("world_size, zero_stage, tensor_parallel", [(1, 1, 1), (2, 2, 2), (2, 3, 2)])
def test_a_flip_leaves_no_byte_and_gathers_each_matrix_once(
    world_size: int, zero_stage: int, tensor_parallel: int, run_on_gpu: OnGPU
) -> None:
    for found in run_on_gpu(_flips, zero_stage, tensor_parallel, world_size=world_size):
        before, after = found["outside"][2::2], found["outside"][3::2]  # the first round makes tables that stay
        left = {now - then for now, then in zip(after, before, strict=True)}
        # after a step ZeRO-3 keeps its norms whole, until they are gathered for the copy
        assert left == {-2 * 320 * (2 * LAYERS + 1) if zero_stage == 3 else 0}, (
            "bytes that a release has not given back"
        )
        assert max(found["beyond"][1:]) <= (1 << 20 if is_real() else 0), "bytes beside the copy and the cache"
        if not is_real():
            matrices = 7 * LAYERS + 2
            assert found["gathers"] == [matrices if zero_stage == 3 else 0] * FLIPS


# --- the cache of a copy that is cut ----------------------------------------------------------------------------------

WHOLE_ATTENTION = ("olmo2", "codegen")


def _cache(families: list[str]) -> dict[str, tuple[int, int, int]]:
    """By family: bytes of a token in the cache as they are and as they are reckoned; groups that fit into as much."""
    found = {}
    for family in families:
        hybrid = HybridEngine(
            engines.engine(1, model=tiny_lm(family)), pad_token_id=0, inference_dtype="fp32", tensor_parallel=2
        )
        with hybrid.generating() as sampler:
            own = hybrid._sampler
            sampler.generate(PROMPTS, Sampling(max_new_tokens=4), rows=range(len(PROMPTS)))
            held = own.cache.bytes()
            own.limit_cache(held)
            groups = own._groups(PROMPTS * 2, 4)  # those of both ranks
            found[family] = held // own.cache.allocated, own.bytes_per_row(1), len(groups)
    return found


def test_the_cache_of_a_rank_is_reckoned_with_its_own_heads(run_on_gpu: OnGPU) -> None:
    """A cache with room for all prompts took them in two groups, or eight times the time for opt-66b on eight ranks:
    the heads of the whole model were counted. Some families keep all heads on every rank."""
    families = ["llama", "opt", "gpt2", "bloom", *WHOLE_ATTENTION]
    for found in run_on_gpu(_cache, families, world_size=2):
        for family, (held, reckoned, groups) in found.items():
            assert (held, groups) == (reckoned, 1), family


# --- a token ----------------------------------------------------------------------------------------------------------


def _decoding(families: list[str]) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """By family: what TOKENS more tokens cost in a model of two layers, and how much more they cost in one of four."""
    found = {}
    for family in families:
        more = [_of_more_tokens(family, layers) for layers in (2, 4)]
        found[family] = more[0], more[1] - more[0]
    return found


def _of_more_tokens(family: str, layers: int) -> Counter[str]:
    config = FAMILIES[family]()
    setattr(config, config.attribute_map.get("num_hidden_layers", "num_hidden_layers"), layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    model: Any = random_lm(config)
    model = model.to(distributed.device(), torch.bfloat16)
    counts = []
    for tokens in (4, 4 + TOKENS):
        with card.counted() as counter:
            Sampler(model, pad_token_id=0).generate(PROMPTS, Sampling(max_new_tokens=tokens))
        counts.append(counter)
    return counts[1] - counts[0]


# Kernels of a layer for one token. A norm of Llama's kind is one kernel in CUDA and six here.
TOKENS, KERNELS = 8, {"llama": 38, "opt": 20, "gpt2": 25, "bloom": 28}


@counted_on_pretence
def test_a_token_waits_once_and_each_layer_sends_few_kernels(run_on_gpu: OnGPU) -> None:
    """The CPU waits for the drawn tokens. It waited a second time, for random numbers that it sent token by token."""
    (found,) = run_on_gpu(_decoding, list(KERNELS))
    for family, (of_tokens, of_layers) in found.items():
        assert of_tokens["device to host"] == card.waits(of_tokens) == TOKENS, (family, of_tokens)
        assert of_tokens["host to device"] == 0, (family, of_tokens)
        a_layer = card.kernels(of_layers) / (2 * TOKENS)
        assert a_layer <= KERNELS[family], (family, a_layer, of_layers)
