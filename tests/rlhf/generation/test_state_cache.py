"""Models with a state: what is drawn is what the whole model says of each prefix, and what transformers generates."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rlhf.errors import ConfigError
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.generation.state_cache import StateCache, needs_own_cache
from rlhf.models import families
from tests.helpers.stateful import STATEFUL, stateful_lm
from tests.helpers.tiny import FAMILIES, VOCABULARY, tiny_lm

PAD = 0
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22], [250, 3], [77]]
STOPS = tuple(range(2, VOCABULARY, 9))  # rows end at different lengths and leave the batch


@torch.no_grad()
def of_prefixes(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """The log-probability of each token of a response, from a whole forward of what stands before it."""
    found = []
    for place, token in enumerate(response):
        ids = torch.tensor([prompt + response[:place]])
        found.append(model(input_ids=ids, use_cache=False).logits[0, -1].float().log_softmax(-1)[token])
    return torch.stack(found)


@pytest.mark.parametrize("family", STATEFUL)
def test_log_probabilities_are_those_of_whole_forwards(family: str) -> None:
    """Mamba was sampled without its state, 1.9 nats off and without a word; qwen3_next, lfm2 and others crashed in
    stage 3. Left padding, equal prompts, rows that leave the batch, and a small cache change nothing."""
    model = stateful_lm(family)
    sampler = Sampler(model, pad_token_id=PAD)
    assert isinstance(sampler.cache, StateCache)
    found = sampler.generate(PROMPTS, Sampling(10, stop_token_ids=STOPS), seed=4)
    assert len({len(response) for response in found.responses()}) > 1, "the case must have rows of different lengths"
    for row, response in enumerate(found.responses()):
        wanted = of_prefixes(model, PROMPTS[row], response)
        torch.testing.assert_close(found.logprobs_BR[row, : len(response)], wanted, rtol=0, atol=1e-5)
    sampler.limit_cache(2 * sampler.bytes_per_row(32))
    assert sampler.generate(PROMPTS, Sampling(10, stop_token_ids=STOPS), seed=4).responses() == found.responses()


@pytest.mark.parametrize("family", ["mamba", "qwen3_next", "lfm2", "gemma3n_text"])
def test_greedy_is_that_of_transformers(family: str) -> None:
    model = stateful_lm(family)
    model.generation_config.eos_token_id = VOCABULARY + 1
    sampler = Sampler(model, pad_token_id=PAD)
    for prompt in PROMPTS[:3]:
        wanted = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=PAD)
        found = sampler.generate([prompt], Sampling(12, temperature=0, stop_token_ids=()))
        assert found.responses() == [wanted[0, len(prompt) :].tolist()]


def test_the_cost_of_a_row_has_a_part_that_does_not_grow() -> None:
    """Mamba's state is as large for one token as for a thousand; two layers, 64 channels, 8 states, 4 columns."""
    sampler = Sampler(stateful_lm("mamba"), pad_token_id=PAD)
    assert sampler.bytes_per_row(1) == sampler.bytes_per_row(1000) == 2 * 64 * (8 + 4) * 4
    hybrid = Sampler(stateful_lm("qwen3_next"), pad_token_id=PAD)
    # the one layer with attention: keys and values of 2 heads of 8 numbers
    assert hybrid.bytes_per_row(11) - hybrid.bytes_per_row(1) == 10 * 2 * 2 * 8 * 4


def test_plain_families_keep_the_samplers_own_cache() -> None:
    assert not any(needs_own_cache(config()) for config in FAMILIES.values())


def test_what_cannot_be_sampled_is_refused() -> None:
    """RWKV takes its state under another name and would swallow the cache."""
    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    with pytest.raises(ConfigError, match="type rwkv, which has no cache that the sampler can use"):
        Sampler(AutoModelForCausalLM.from_config(config), pad_token_id=PAD)
    assert Sampler(tiny_lm("llama"), pad_token_id=PAD)


def source_of(kind: str) -> str:
    """The source of a family's models in the installed transformers."""
    module = inspect.getmodule(CONFIG_MAPPING[kind])
    assert module is not None and module.__file__ is not None
    file = Path(module.__file__.replace("configuration_", "modeling_"))
    return file.read_text(encoding="utf-8") if file.exists() else ""


def test_every_family_with_a_state_is_in_a_table() -> None:
    """A family of a newer transformers that keeps a state must be compared before it is sampled from."""
    keeps = re.compile(r"update_recurrent_state|update_conv_state|update_indexer|cache_params")
    known = families.STATEFUL | families.UNSAMPLED | families.UNSUPPORTED.keys()
    causal = families.causal_classes() or {}
    assert [kind for kind in causal if kind not in known and keeps.search(source_of(kind))] == []
