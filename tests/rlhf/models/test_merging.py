"""One adapted layer, of every kind that peft makes: its names, its factors, its merged weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.models.lora import attach
from rlhf.models.merging import (
    base_of,
    factors,
    in_fp32,
    is_adapter,
    merged,
    own_factors,
    plain_modules,
    plain_weights,
    wrappers,
)
from rlhf.stage_config import LoraSettings
from tests.helpers.engines import adapted
from tests.helpers.tiny import tiny_lm

LAYERS = "base_model.model.model.layers.0."


def test_experts_in_stacked_weights_have_a_wrapper_for_each_weight() -> None:
    """Mixtral's experts are two stacked parameters of one module, so peft puts one wrapper inside the other."""
    model = attach(tiny_lm("mixtral"), LoraSettings(lora_rank=2))
    experts = model.get_submodule(LAYERS + "mlp.experts")
    assert [wrapper.parameter_name for wrapper in wrappers(experts)] == ["down_proj", "gate_up_proj"]
    assert base_of(experts) is experts.base_layer.base_layer and not is_adapter(base_of(experts))
    assert len(own_factors(experts)) == 4
    layer = model.get_submodule(LAYERS + "self_attn.q_proj")
    assert sorted(factors(layer)) == ["lora_A.default.weight", "lora_B.default.weight"]
    assert base_of(base_of(layer)) is layer.base_layer
    assert not wrappers(layer.base_layer) and not own_factors(layer.base_layer)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3", "qwen3_next"])
def test_names_are_those_of_the_model_without_adapters(family: str) -> None:
    plain: Any = tiny_lm(family)
    wanted, modules = set(plain.state_dict()), dict(plain.named_modules())
    model = attach(plain, LoraSettings(lora_rank=2)).get_base_model()
    assert set(plain_weights(model)) == wanted
    found = dict(plain_modules(model))
    assert found.keys() == modules.keys()
    assert all(base_of(module) is modules[name] for name, module in found.items())


@pytest.mark.parametrize("key", ["gate_up_proj", "down_proj"])
def test_delta_of_stacked_experts_is_that_of_each_expert(key: str) -> None:
    """W_e + α/r · B_e A_e by hand, for every expert e. peft keeps the factors of all experts in two matrices."""
    model = attach(tiny_lm("mixtral"), LoraSettings(lora_rank=2, lora_alpha=6.0))
    experts = model.get_submodule(LAYERS + "mlp.experts")
    wrapper = next(w for w in wrappers(experts) if w.parameter_name == key)
    count, rank = 4, wrapper.r["default"]
    with torch.no_grad():
        down, up = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight.normal_()
        weight = getattr(base_of(experts), key).detach()
        found = merged(experts, key, weight)
        for expert in range(count):
            a = down[expert * rank : (expert + 1) * rank]
            b = up[:, expert::count]
            torch.testing.assert_close(found[expert], weight[expert] + 3 * b @ a, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name, key", [("self_attn.q_proj", "weight"), ("mlp.experts", "gate_up_proj")])
def test_sum_is_in_fp32_and_not_rounded(name: str, key: str) -> None:
    """W = 1 in bf16 and B A = 2⁻⁹ · (1 + 2⁻⁷) in each place: bf16 has 8 bits, so a rounded sum would be 1 again, and
    a rounded delta 2⁻⁹. Once the deltas were rounded to bf16 before the sum."""
    model = attach(tiny_lm("mixtral").bfloat16(), LoraSettings(lora_rank=1, lora_alpha=1))
    module = model.get_submodule(LAYERS + name)
    base, wrapper = base_of(module), next(w for w in wrappers(module) if getattr(w, "parameter_name", "weight") == key)
    with torch.no_grad():
        getattr(base, key).fill_(1.0)
        wrapper.lora_A["default"].weight.fill_(2.0**-9)
        # two ranks for the gate and the up half: their products add up
        wrapper.lora_B["default"].weight.fill_((1 + 2.0**-7) / wrapper.r["default"])
        found = merged(module, key, getattr(base, key))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.full_like(found, 1 + 2.0**-9 * (1 + 2.0**-7)))
    assert getattr(base, key).dtype == torch.bfloat16 == wrapper.lora_A["default"].weight.dtype
    assert merged(base, key, getattr(base, key)) is getattr(base, key)


def test_other_values_of_factors_count_while_they_are_held() -> None:
    """The moving average is exported so: its factors in fp32 take the place of the module's own, and go again."""
    layer: Any = adapted(tiny_lm().bfloat16()).get_submodule(LAYERS + "self_attn.q_proj")
    weight = layer.base_layer.weight.detach()
    before = merged(layer, "weight", weight)
    average = {id(layer.lora_B["default"].weight): torch.full((32, 4), 1 + 2.0**-12)}
    with in_fp32(own_factors(layer), lambda parameter: average.get(id(parameter))):
        found = merged(layer, "weight", weight)
    delta = layer.scaling["default"] * (1 + 2.0**-12) * layer.lora_A["default"].weight.float().sum(0).expand(32, 32)
    torch.testing.assert_close(found, weight.float() + delta, atol=1e-6, rtol=0)
    assert torch.equal(merged(layer, "weight", weight), before)
