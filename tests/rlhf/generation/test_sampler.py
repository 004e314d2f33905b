"""The sampler: what it draws is what the model says, whoever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from tests.helpers.tiny import FAMILIES, VOCABULARY, tiny_lm

PAD = 0
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17, 18, 19, 20], [250, 3], [8, 8, 8, 90, 41]]


def hf_greedy(model: Any, prompts: list[list[int]], new: int, *, stops: list[int], minimum: int = 0) -> list[list[int]]:
    """transformers' own greedy decoding of a left-padded batch, cut after the first stop token."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = stops
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=minimum,
        do_sample=False,
        pad_token_id=PAD,
    )
    responses = []
    for row in out[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        responses.append(row[:end])
    return responses


def stops_in_the_middle(responses: list[list[int]]) -> list[int]:
    """A token that some responses hold in their middle, so that rows end at different lengths."""
    inner = [token for row in responses for token in row[1:-2]]
    return [max(set(inner), key=inner.count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_that_of_transformers(family: str) -> None:
    """Left padding, explicit positions, stop tokens in mid-response, rows leaving the batch: the ids stay the same."""
    model = tiny_lm(family)
    free = hf_greedy(model, PROMPTS, 16, stops=[VOCABULARY + 1])
    stops = stops_in_the_middle(free)
    expected = hf_greedy(model, PROMPTS, 16, stops=stops)
    assert len({len(row) for row in expected}) > 1, "the case must have rows of different lengths"
    sampling = Sampling(max_new_tokens=16, temperature=0, stop_token_ids=tuple(stops))
    for compaction in (True, False):
        generation = Sampler(model, pad_token_id=PAD, compaction=compaction).generate(PROMPTS, sampling)
        assert generation.responses() == expected
        assert generation.stopped_B.tolist() == [row[-1] in stops for row in expected]
        assert (generation.ids_BR[~generation.mask_BR] == PAD).all()
    sampler = Sampler(model, pad_token_id=PAD)
    assert [sampler.generate([prompt], sampling).responses()[0] for prompt in PROMPTS] == expected
    assert list(sampler.stream(PROMPTS[0], sampling)) == expected[0]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_minimum_length_masks_the_stop_token(family: str) -> None:
    model = tiny_lm(family)
    stops = stops_in_the_middle(hf_greedy(model, PROMPTS, 16, stops=[VOCABULARY + 1]))
    expected = hf_greedy(model, PROMPTS, 16, stops=stops, minimum=10)
    sampling = Sampling(max_new_tokens=16, min_new_tokens=10, temperature=0, stop_token_ids=tuple(stops))
    generation = Sampler(model, pad_token_id=PAD).generate(PROMPTS, sampling)
    assert generation.responses() == expected
    assert min(len(row) for row in expected) >= 11


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_model_at_the_temperature(family: str) -> None:
    """Against a plain forward of prompt and response without padding or cache."""
    model = tiny_lm(family)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, stop_token_ids=(40,))
    generation = Sampler(model, pad_token_id=PAD).generate(PROMPTS, sampling, seed=3)
    for index, (prompt, response) in enumerate(zip(PROMPTS, generation.responses(), strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / 0.7).log_softmax(dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(generation.logprobs_BR[index, : len(response)], logprobs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "bloom", "opt"])
def test_a_row_draws_the_same_alone_and_in_any_batch(family: str) -> None:
    """Random numbers belong to the global row, so splitting a batch, or over ranks, changes no token."""
    sampler = Sampler(tiny_lm(family), pad_token_id=PAD)
    sampling = Sampling(max_new_tokens=12, stop_token_ids=(7, 19, 45, 100, 101, 102, 103))
    whole = sampler.generate(PROMPTS, sampling, seed=5, iteration=2).responses()
    for rows in ([0], [3, 4], [1, 2, 4], [4, 0]):
        part = sampler.generate([PROMPTS[r] for r in rows], sampling, seed=5, iteration=2, rows=rows)
        assert part.responses() == [whole[r] for r in rows]
    assert sampler.generate(PROMPTS, sampling, seed=5, iteration=3).responses() != whole


def test_nothing_to_generate() -> None:
    sampler = Sampler(tiny_lm(), pad_token_id=PAD)
    generation = sampler.generate([], Sampling(4))
    assert generation.ids_BR.shape == (0, 4)
    assert generation.responses() == []


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_small_cache_splits_the_batch_by_length(family: str) -> None:
    """Room for two rows at a time: the same samples, rows in their places, the cache no larger than allowed."""
    model = tiny_lm(family)
    sampling = Sampling(max_new_tokens=12, stop_token_ids=(7, 19, 45, 100))
    expected = Sampler(model, pad_token_id=PAD).generate(PROMPTS, sampling, seed=5)
    sampler = Sampler(model, pad_token_id=PAD)
    most = 2 * sampler.bytes_per_row(32)
    sampler.limit_cache(most)
    found = sampler.generate(PROMPTS, sampling, seed=5)
    assert found.responses() == expected.responses()
    assert found.stopped_B.tolist() == expected.stopped_B.tolist()
    assert 0 < sampler.cache.bytes() <= most
    sampler.release()
    assert sampler.cache.bytes() == 0


def test_equal_prompts_are_read_once_and_sampled_apart() -> None:
    """Several responses to a prompt share its prefill; the rest is as if each row had its own."""
    model = tiny_lm("llama")
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[0], PROMPTS[2]]
    sampling = Sampling(max_new_tokens=12, stop_token_ids=(7, 19))
    read: list[int] = []
    sampler = Sampler(model, pad_token_id=PAD)
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(len(args[0])))
    found = sampler.generate(prompts, sampling, seed=8).responses()
    handle.remove()
    assert read[0] == 2, "two distinct prompts"
    for row, prompt in enumerate(prompts):
        alone = Sampler(model, pad_token_id=PAD).generate([prompt], sampling, seed=8, rows=[row])
        assert alone.responses() == [found[row]]
    assert found[0] != found[2] != found[3]
    few = Sampler(model, pad_token_id=PAD, prefill_tokens=4).generate(prompts, sampling, seed=8)
    assert few.responses() == found, "prompts read in smaller groups"
