"""Export: every weight of a model is in the folder, merged as it was trained, or nothing is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.errors import ModelError
from rlhf.models import export as module
from rlhf.models.export import export
from rlhf.models.lora import attach
from rlhf.stage_config import LoraSettings
from tests.helpers.engines import adapted
from tests.helpers.families import config_of
from tests.helpers.stages import outputs
from tests.helpers.tiny import tiny_lm, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")
# Experts in stacked weights, adapted or not; a router's bias that is a buffer; a router that is linear in name.
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "qwen3_next", "phimoe"]


def opened(auto: Any, folder: Path) -> Any:
    """The model of a folder, after a look at what transformers says of its weights."""
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


@pytest.mark.parametrize("family", EXPERTS)
def test_adapted_experts_are_exported(family: str, tmp_path: Path) -> None:
    """peft adapts experts in stacked weights by wrappers in wrappers. Once only one was taken off, and the folder held
    no expert at all; so did it lack deepseek's router bias, a buffer inside a wrapper."""
    plain = tiny_lm(family)
    plain.save_pretrained(tmp_path / "base")
    before = outputs(plain)
    model = adapted(plain)
    trained = outputs(model)
    assert (trained - before).abs().max() > 0.1, "the adapters did nothing"
    export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    torch.testing.assert_close(outputs(opened(AutoModelForCausalLM, tmp_path / "model")), trained, atol=2e-6, rtol=0)
    base: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    beside = PeftModel.from_pretrained(base, str(tmp_path / "model/adapter"))
    torch.testing.assert_close(outputs(beside), trained, atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_adapted_experts_of_a_reward_model_are_exported(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of(family, num_labels=1)
    model = attach(AutoModelForSequenceClassification.from_config(config), LoraSettings(lora_rank=2), keep_head="score")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    trained = outputs(model)
    export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    found = opened(AutoModelForSequenceClassification, tmp_path / "model")
    torch.testing.assert_close(outputs(found), trained, atol=2e-6, rtol=0)


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["gate_proj", "up_proj", "down_proj"], ["gate"]])
def test_other_kinds_of_adapters_are_merged(targets: list[str], tmp_path: Path) -> None:
    """An embedding's delta is computed otherwise; here the names of v4 stand for the stacked weights, and for a
    router's."""
    model = attach(tiny_lm("qwen3_moe"), LoraSettings(lora_rank=2, lora_target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    trained = outputs(model)
    assert (trained - outputs(tiny_lm("qwen3_moe"))).abs().max() > 1e-2
    export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    torch.testing.assert_close(outputs(opened(AutoModelForCausalLM, tmp_path / "model")), trained, atol=4e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "deepseek_v3"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_folder_that_would_lack_weights_is_not_written(
    family: str, lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers fills what a folder lacks with random numbers, so such a folder was a broken model without a word.
    qwen2's head is its embedding, which is written once."""
    model: Any = adapted(tiny_lm(family)) if lora else tiny_lm(family)
    export(model, tmp_path / "whole", tokenizer=tiny_tokenizer())
    everything = module._merged_weights

    def some(lm: Any, full_value: Any) -> Any:
        return (pair for pair in everything(lm, full_value) if not pair[0].startswith("model.layers.1.mlp"))

    monkeypatch.setattr(module, "_merged_weights", some)
    with pytest.raises(ModelError, match=r"lack (model\.layers\.1\.mlp\.[\w.]+, ){2}.*; the checkpoints hold"):
        export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    assert not (tmp_path / "model").exists()

    def others(lm: Any, full_value: Any) -> Any:
        yield from everything(lm, full_value)
        yield "model.extra", torch.zeros(1)

    monkeypatch.setattr(module, "_merged_weights", others)
    with pytest.raises(ModelError, match=r"it would hold, beside those of the model, model\.extra; "):
        export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_of_a_model_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    """The weights, and those of the adapter, were written with mode 0600: nobody else on a cluster could load them."""
    lm: Any = tiny_lm()
    model = get_peft_model(lm, LoraConfig(r=2, target_modules="all-linear"))
    before = os.umask(umask)
    try:
        export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {Path("model/model.safetensors"), Path("model/adapter/adapter_model.safetensors")} <= found.keys()
    assert found == {name: (0o666 if name.suffix else 0o777) & ~umask for name in found}
