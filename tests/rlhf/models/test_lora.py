"""Adapters: what they match, what stays trained, what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.errors import ConfigError
from rlhf.models.lora import adapters_off, attach, count_adapters, is_adapted
from rlhf.stage_config import LoraSettings
from scripts import family_configs as table
from tests.helpers.tiny import FAMILIES, tiny_lm

IDS = torch.tensor([[5, 6, 7, 8]])
# linear layers of one block, the output embedding left out
LAYERS = {
    "opt": 6, "opt_projected": 6, "llama": 7, "qwen2": 7, "mistral": 7, "qwen3": 7, "gemma": 7, "gpt2": 4,
    "gpt_neox": 4, "bloom": 4,
}  # fmt: skip


def test_rank_zero_leaves_the_model_alone() -> None:
    lm = tiny_lm()
    assert attach(lm, LoraSettings()) is lm
    assert not is_adapted(lm)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_linear_layers_are_matched_and_counted(
    family: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach(tiny_lm(family), LoraSettings(lora_rank=2))
    projections = 2 if family == "opt_projected" else 0  # into and out of the narrow embedding
    assert count_adapters(model) == 2 * LAYERS[family] + projections
    assert f"rank 2 adapters on {count_adapters(model)} modules" in capsys.readouterr().out
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed_out" in name for name in trained)


def test_named_modules_alone() -> None:
    model = attach(tiny_lm(), LoraSettings(lora_rank=2, lora_target_modules=["q_proj", "v_proj"]))
    assert count_adapters(model) == 4


def test_no_match_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"lora_target_modules=q_porj matches no module.*did you mean 'q_proj'\?"):
        attach(tiny_lm(), LoraSettings(lora_rank=2, lora_target_modules=["q_porj"]))


@pytest.mark.parametrize(
    "family, targets, message",
    [
        ("llama", ["lm_head"], "the output embedding lm_head cannot have an adapter; leave it out"),
        ("qwen2", ["embed_tokens", "q_proj"], "model.embed_tokens shares its weight with lm_head, so its adapter"),
        ("mixtral", ["w1"], "Cannot convert PEFT target(s) w1 without also targeting w3"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_before_training(
    family: str, targets: list[str], message: str
) -> None:
    """An adapter of a tied embedding was trained and then merged into the head as well; one of the head crashed."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        attach(tiny_lm(family), LoraSettings(lora_rank=2, lora_target_modules=targets))


def test_dropout_on_stacked_experts_is_refused_by_its_name() -> None:
    """It used to say that all-linear matches no module."""
    with pytest.raises(ConfigError, match=r"lora_dropout=0.1: this model keeps its experts in stacked weights"):
        attach(tiny_lm("mixtral"), LoraSettings(lora_rank=2, lora_dropout=0.1))


@pytest.mark.parametrize("family", ["phimoe", "llama4_text"])
def test_a_router_that_is_linear_in_name_gets_no_adapter(family: str) -> None:
    """It returns several tensors; peft wrapped it, and the first forward failed."""
    model = attach(tiny_lm(family), LoraSettings(lora_rank=2))
    assert not any("router.lora_" in name for name, _ in model.named_parameters())
    assert torch.isfinite(model(input_ids=IDS).logits).all()


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2", "falcon_h1", "nemotron_h", "jamba"])
def test_every_adapter_of_a_state_space_model_learns(family: str) -> None:
    """peft refused all-linear for most of these, because of `out_proj`; jamba got adapters beside weights that it reads
    without calling the layer, and these stayed what they were."""
    torch.manual_seed(0)
    model = attach(table.FAMILIES[family].model(), LoraSettings(lora_rank=2))
    adapters = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert adapters
    model.train()(input_ids=IDS, use_cache=False).logits[..., 7].sum().backward()
    assert not [name for name, p in adapters.items() if p.grad is None and "expert" not in name]


def test_a_layer_that_peft_refuses_is_refused_when_it_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        attach(tiny_lm("mamba"), LoraSettings(lora_rank=2, lora_target_modules=["in_proj", "out_proj"]))
    assert "lora_target_modules=in_proj,out_proj: " in str(refused.value)
    assert "'out_proj' is incompatible with Mamba-based models" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_scalar_head_is_trained_whole() -> None:
    torch.manual_seed(0)
    config = FAMILIES["llama"]()
    config.num_labels = 1
    model = attach(AutoModelForSequenceClassification.from_config(config), LoraSettings(lora_rank=2), keep_head="score")
    trained = {name.rpartition(".lora_")[0] or name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert "base_model.model.score.weight" in trained
    assert count_adapters(model) == 14


def test_adapters_begin_as_nothing_and_can_be_switched_off() -> None:
    plain: Any = tiny_lm()
    model = attach(tiny_lm(), LoraSettings(lora_rank=2))
    with torch.no_grad():
        before = plain(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, before)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert not torch.allclose(model(input_ids=IDS).logits, before, atol=0.1)
        with adapters_off(model):
            assert torch.equal(model(input_ids=IDS).logits, before)
        assert not torch.allclose(model(input_ids=IDS).logits, before, atol=0.1)


def test_delta_is_scaled_by_alpha_over_rank() -> None:
    """Rank 2, alpha 6: W + 3 · B A, on one layer by hand."""
    model = attach(tiny_lm(), LoraSettings(lora_rank=2, lora_alpha=6.0, lora_target_modules=["q_proj"]))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.randn(1, 32)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        wanted = x @ layer.base_layer.weight.T
        wanted = wanted + 3 * (x @ layer.lora_A["default"].weight.T) @ layer.lora_B["default"].weight.T
        torch.testing.assert_close(layer(x), wanted)
