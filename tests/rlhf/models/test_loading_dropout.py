"""Without dropout nothing in a model is random in training mode, however its family names what is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf.models.loading import Loading, load_causal_lm, remove_dropout
from rlhf.models.scalar_model import ScalarModel, load_scalar_model
from tests.helpers.families import config_of
from tests.helpers.tiny import FAMILIES, random_lm, save_tiny, tiny_lm, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9, 10] * 3])
# The dropouts of these have names of their own; phimoe and mixtral have routers with noise.
OTHERS = ["starcoder2", "seed_oss", "gpt_neo", "mpt", "biogpt", "phi3", "mixtral", "phimoe"]


def random_numbers(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every number of a config, or of a config inside it, whose name speaks of dropout or noise, with its place."""
    for name, value in config.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield from random_numbers(value, (*path, name))
        elif type(value) in (int, float) and ("drop" in str(name) or "jitter" in str(name)):
            yield (*path, name), value


def turn_on(config: Any) -> int:
    """Set all of them to 0.5 (where only whole numbers fit, to 1); returns how many."""
    found = list(random_numbers(config.to_dict()))
    for path, value in found:
        inner = config
        for name in path[:-1]:
            inner = inner[name] if isinstance(inner, dict) else getattr(inner, name)
        on = 1 if type(value) is int else 0.5
        if isinstance(inner, dict):
            inner[path[-1]] = on
        else:
            setattr(inner, path[-1], on)
    return len(found)


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_no_dropout_leaves_none(family: str, tmp_path: Path) -> None:
    """Two forwards in training mode agree, for language and scalar models, though the folder asks for dropout.

    starcoder2 and seed_oss kept a tenth of their dropout in stage 3, because their configs name it otherwise. phimoe's
    router draws in training mode, and its "noise" is a threshold: set to 0, it made another model of it.
    """
    save_tiny(tmp_path, family)
    config = CONFIG_MAPPING[json.loads((tmp_path / "config.json").read_text())["model_type"]].from_pretrained(tmp_path)
    assert turn_on(config)
    config.save_pretrained(tmp_path)
    lm: Any = load_causal_lm(Loading(str(tmp_path)))
    plain = lm.eval()(input_ids=IDS, use_cache=False).logits
    assert not torch.equal(lm.train()(input_ids=IDS, use_cache=False).logits, plain), "the folder's dropout is on"
    lm = load_causal_lm(Loading(str(tmp_path), no_dropout=True)).train()
    trained = lm(input_ids=IDS, use_cache=False).logits
    assert torch.equal(trained, lm(input_ids=IDS, use_cache=False).logits)
    assert torch.equal(trained, plain)
    assert torch.equal(trained, lm.eval()(input_ids=IDS, use_cache=False).logits)
    if family in FAMILIES:
        loaded = load_scalar_model(Loading(str(tmp_path), tiny_tokenizer(), no_dropout=True), new_head=True)
        scalar = ScalarModel(loaded).train()
        assert torch.equal(scalar(IDS), scalar(IDS))


def test_a_router_that_does_not_draw_still_learns(tmp_path: Path) -> None:
    """With a threshold that leaves a token more than one expert to choose from."""
    config = config_of("phimoe", router_jitter_noise=0.5)
    random_lm(config).save_pretrained(tmp_path)
    lm: Any = load_causal_lm(Loading(str(tmp_path), no_dropout=True)).train()
    lm(input_ids=IDS, use_cache=False).logits[..., 7].sum().backward()
    routers = [parameter for name, parameter in lm.named_parameters() if name.endswith("router.weight")]
    assert len(routers) == 2
    assert all(router.grad.abs().max() > 0 for router in routers)


@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_no_config_of_a_family_keeps_a_dropout(family: str) -> None:
    """Every causal family that transformers has, with all its dropouts on: also those of the configs inside."""
    try:
        config: Any = CONFIG_MAPPING[family]()
    except Exception as error:
        pytest.skip(f"no config without arguments: {error}"[:80])
    turn_on(config)
    remove_dropout(config)
    left = [place for place, value in random_numbers(config.to_dict()) if value]
    assert left == ([("router_jitter_noise",)] if family == "phimoe" else [])  # a threshold


def test_only_numbers_that_speak_of_dropout_are_changed() -> None:
    class Config:
        def __init__(self) -> None:
            self.attention_dropout, self.classifier_dropout, self.hidden_dropout, self.layerdrop = 0.1, None, "yes", 1
            self.drop_path, self.hidden_size, self.attn_config = True, 32, {"attn_pdrop": 0.2, "heads": 4}
            self.label2id = {"dropped": 3}

    config = Config()
    remove_dropout(config)
    assert vars(config) == {
        "attention_dropout": 0.0, "classifier_dropout": None, "hidden_dropout": "yes", "layerdrop": 0,
        "drop_path": True, "hidden_size": 32, "attn_config": {"attn_pdrop": 0.0, "heads": 4},
        "label2id": {"dropped": 3},
    }  # fmt: skip


def test_modules_that_keep_a_number_of_their_own_are_silenced() -> None:
    """A model may be built with a dropout that its config does not name."""
    lm: Any = tiny_lm()
    lm.model.norm = nn.Sequential(lm.model.norm, nn.Dropout(0.5))
    lm.model.layers[0].self_attn.attention_dropout = 0.5
    assert not torch.equal(lm.train()(input_ids=IDS).logits, lm(input_ids=IDS).logits)
    remove_dropout(lm)
    assert torch.equal(lm(input_ids=IDS).logits, lm(input_ids=IDS).logits)
