"""rlhf/memory: the number of weights that a config.json says is that of the model which transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from rlhf.memory.known import known_config
from rlhf.memory.shapes import shape_of
from rlhf.memory.weights import backbone_in, count_adapters, count_weights, embedding_weights, weights_in
from rlhf.models.names import ALIASES
from tests.helpers.families import CHANGES, config_of
from tests.helpers.tiny import FAMILIES, save_tiny

# Totals that the hub shows for the aliases' weights (tied ones once).
TOTALS = {
    "opt-125m": 125_239_296, "opt-350m": 331_196_416, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984, "opt-13b": 12_853_473_280, "opt-30b": 29_974_540_288, "opt-66b": 65_719_701_504,
    "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632,
    "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320,
    "bloom-560m": 559_214_592, "bloom-1b1": 1_065_314_304, "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496, "mistral-7b": 7_248_023_552, "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896, "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120,
}  # fmt: skip


def made(config: Any, kind: Any = hf.AutoModelForCausalLM) -> Any:
    """The model of a config, without memory for its weights."""
    with torch.device("meta"):
        return kind.from_config(config)


def as_on_disk(config: Any) -> dict[str, Any]:
    """The config.json that transformers writes, which leaves out what a family has by default."""
    return json.loads(config.to_json_string())


@pytest.mark.parametrize("family", [*FAMILIES, *CHANGES])
def test_a_family_is_counted_to_the_last_weight(family: str) -> None:
    """Those that are not known to the last weight say so, and are not taken for exact."""
    config = FAMILIES[family]() if family in FAMILIES else config_of(family)
    shape = shape_of(as_on_disk(config))
    if shape is None or not shape.exact:
        assert family not in FAMILIES
        return
    assert count_weights(shape) == sum(p.numel() for p in made(config).parameters())


def test_most_families_are_exact() -> None:
    configs = [as_on_disk(config_of(family)) for family in CHANGES]
    exact = [shape for shape in map(shape_of, configs) if shape is not None and shape.exact]
    assert len(exact) >= 35


@pytest.mark.parametrize("family", ["opt_projected", "llama", "qwen2", "gpt_neox"])
def test_a_reward_model_has_a_scalar_head_and_no_output_embedding(family: str) -> None:
    config = FAMILIES[family]()
    shape = shape_of(as_on_disk(config))
    assert shape is not None
    config.num_labels = 1
    model = made(config, hf.AutoModelForSequenceClassification)
    assert count_weights(shape, scalar=True) == sum(p.numel() for p in model.parameters())


def test_every_alias_is_a_fact_with_the_published_total() -> None:
    assert TOTALS.keys() == ALIASES.keys()
    for alias, total in TOTALS.items():
        config = known_config(alias)
        assert config is not None, alias
        shape = shape_of(config)
        assert shape is not None and shape.exact
        assert count_weights(shape) == total, alias
        assert known_config(ALIASES[alias]) is config  # and by its hub name


@pytest.mark.parametrize("alias", ["opt-350m", "bloom-560m", "gpt2", "qwen2.5-0.5b", "qwen3-0.6b", "gemma-2b"])
def test_the_facts_make_the_same_model_in_transformers(alias: str) -> None:
    config = dict(known_config(alias) or {})
    model = made(hf.CONFIG_MAPPING[config.pop("model_type")](**config))
    assert sum(p.numel() for p in model.parameters()) == TOTALS[alias]


def test_a_folder_is_counted_by_its_files(tmp_path: Path) -> None:
    """Weights that no config tells of: a table of extra embeddings, say."""
    folder = save_tiny(tmp_path / "model", "gpt_neox")
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    assert shape is not None
    assert weights_in(folder) == count_weights(shape)
    assert backbone_in(folder) == count_weights(shape) - embedding_weights(shape)
    save_file({"extra": torch.zeros(7, 3)}, folder / "more.safetensors")
    assert weights_in(folder) == count_weights(shape) + 21


def test_a_file_that_is_no_safetensors_file_is_left_to_the_loading(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert weights_in(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert weights_in(tmp_path) is None
    assert weights_in(tmp_path / "nowhere") is None


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"]])
@pytest.mark.parametrize("family", ["opt_projected", "llama", "qwen3"])
def test_adapters_are_those_of_peft(family: str, targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    config = FAMILIES[family]()
    shape = shape_of(as_on_disk(config))
    assert shape is not None
    wanted = "all-linear" if targets == ["all-linear"] else targets
    model: Any = get_peft_model(hf.AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules=wanted))
    assert count_adapters(shape, 4, targets) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_config_without_sizes_has_no_shape() -> None:
    assert shape_of({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}) is None
    assert shape_of({"model_type": "llama", "hidden_size": "wide"}) is None
