"""The lean forward of Llama-like models: what transformers' own forward says, in fewer operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.errors import ConfigError
from rlhf.generation.drawing import Sampling
from rlhf.generation.lean_families import NORM_OFFSETS as FAMILIES
from rlhf.generation.lean_families import unlean
from rlhf.generation.sampler import Generation, Sampler
from step3_ppo.hybrid.inference_copy import InferenceCopy
from tests.helpers import tiny

PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17], [8, 8, 8, 90, 41]]
GREEDY = Sampling(max_new_tokens=10, temperature=0, stop_token_ids=(40, 41, 42, 43, 44, 45, 46, 47))


def generate(sampler: Sampler) -> Generation:
    return sampler.generate(PROMPTS, GREEDY)


def agree(mine: Generation, theirs: Generation, bound: float) -> None:
    """Log-probabilities of the tokens up to the first in which the two differ; in fp32 there must be none."""
    same = (mine.ids_BR == theirs.ids_BR).long().cumprod(dim=1).bool() & mine.mask_BR & theirs.mask_BR
    torch.testing.assert_close(mine.logprobs_BR[same], theirs.logprobs_BR[same], atol=bound, rtol=0)
    assert same.sum() >= len(PROMPTS)
    if bound < 1e-3:
        assert mine.responses() == theirs.responses()


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-5), (torch.bfloat16, 0.1)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_transformers_says(family: str, dtype: torch.dtype, bound: float) -> None:
    model = tiny.tiny_lm(family).to(dtype)  # type: ignore[arg-type]
    lean, stock = Sampler(model, pad_token_id=0), Sampler(model, pad_token_id=0)
    assert lean.forward is not None
    stock.forward = None
    agree(generate(lean), generate(stock), bound)


def test_other_families_and_windows_go_through_transformers() -> None:
    for family in set(tiny.FAMILIES) - set(FAMILIES):
        assert Sampler(tiny.tiny_lm(family), pad_token_id=0).forward is None
    windowed = tiny.tiny_lm("mistral")
    windowed.config.sliding_window = 4
    assert Sampler(windowed, pad_token_id=0).forward is None


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}])
def test_positions_are_scaled_as_the_config_says(rope: dict[str, Any]) -> None:
    """Where the table depends on the length of the sequence, transformers does it."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, rope_parameters={"rope_theta": 10000.0, **rope},
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    sampler, stock = Sampler(model, pad_token_id=0), Sampler(model, pad_token_id=0)
    assert (sampler.forward is None) == (rope["rope_type"] == "dynamic")
    stock.forward = None
    agree(generate(sampler), generate(stock), 2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_layers_that_are_packed_as_one_say_what_they_said_alone(family: str) -> None:
    """Biases (Qwen2), norms of heads (Qwen3) and shared key heads included."""
    model = tiny.tiny_lm(family)
    copy = InferenceCopy(model, dtype=torch.float32, device=torch.device("cpu"), group=None)
    copy.refresh()
    assert hasattr(copy.lm.model.layers[0].self_attn, "qkv_proj")
    agree(generate(Sampler(copy.lm, pad_token_id=0)), generate(Sampler(model, pad_token_id=0)), 2e-5)


def test_layers_of_a_model_with_windows_are_packed_one_by_one() -> None:
    """Its forward is transformers', which calls each of them: packed as one, all three were computed three times."""
    windowed = tiny.tiny_lm("mistral")
    windowed.config.sliding_window = 4
    copy = InferenceCopy(windowed, dtype=torch.float32, device=torch.device("cpu"), group=None)
    copy.refresh()
    assert not hasattr(copy.lm.model.layers[0].self_attn, "qkv_proj")
    agree(generate(Sampler(copy.lm, pad_token_id=0)), generate(Sampler(windowed, pad_token_id=0)), 2e-5)


@pytest.mark.slow
def test_compiled_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way but the last, the compiler's own kernels: those take a minute and a C++ compiler."""
    compile_, calls = torch.compile, []

    def traced(function: Any, **options: Any) -> Any:
        calls.append(function)
        return compile_(function, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced)
    model = tiny.tiny_lm("llama")
    agree(generate(Sampler(model, pad_token_id=0, compiled=True)), generate(Sampler(model, pad_token_id=0)), 2e-5)
    assert len(calls) == 1


def test_what_cannot_be_compiled_is_refused() -> None:
    windowed = tiny.tiny_lm("mistral")
    windowed.config.sliding_window = 4
    with pytest.raises(ConfigError, match="sampling from a model with windows cannot be compiled"):
        Sampler(windowed, pad_token_id=0, compiled=True)
    with pytest.raises(ConfigError, match="model of type opt cannot be compiled"):
        Sampler(tiny.tiny_lm("opt"), pad_token_id=0, compiled=True)
    with pytest.raises(ConfigError, match="ZeRO-3 gathers"):
        Sampler(tiny.tiny_lm("llama"), pad_token_id=0, synced=True, compiled=True)


@pytest.mark.parametrize(
    "config, what",
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, ""),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}, "with rotary tables of type dynamic"),
        ({"model_type": "mistral", "sliding_window": None}, ""),
        ({"model_type": "mistral", "sliding_window": 4096}, "with windows"),
        ({"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False}, ""),
        ({"model_type": "qwen2", "sliding_window": 131072}, ""),  # off unless it is said
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, "with windows"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "with windows"),
        ({"model_type": "gpt2"}, "of type gpt2"),
    ],
)
def test_a_plan_knows_by_the_config_alone(config: dict[str, Any], what: str) -> None:
    """The plan let a windowed Mistral pass with `inference_compile`, and the run refused it."""
    assert unlean(config) == what
