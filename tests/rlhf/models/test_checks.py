"""Folders that hold more than a model, and weights that are no numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf.errors import ModelError
from rlhf.models.causal_model import CausalModel, check_head
from rlhf.models.checks import _say_adapter
from rlhf.models.loading import Loading, load_causal_lm
from rlhf.models.scalar_model import load_scalar_model
from tests.helpers.tiny import save_tiny, tiny_lm, tiny_tokenizer


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    """Chat said "index 3 is out of bounds", and stage 1 trained, exported and ended well."""
    save_tiny(tmp_path)
    change_weights(tmp_path, lambda w: w["model.layers.1.mlp.up_proj.weight"][0].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"weights with nan or inf in float32: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(Loading(str(tmp_path)))
    with pytest.raises(ModelError, match="nan or inf"):
        load_scalar_model(Loading(str(tmp_path), tiny_tokenizer()), new_head=True)


def test_what_a_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    change_weights(tmp_path, lambda w: w["model.norm.weight"].fill_(1e5))
    load_causal_lm(Loading(str(tmp_path)))
    with pytest.raises(ModelError, match=r"nan or inf in float16: model\.norm\.weight"):
        load_causal_lm(Loading(str(tmp_path), dtype=torch.float16))


def _load_sharded(folder: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_causal_lm(Loading(folder, zero_stage=3))
    return str(caught.value)


def test_all_ranks_refuse_what_one_of_them_holds(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    """Under ZeRO-3 the broken number is on one rank; the other would wait for it for ever."""
    save_tiny(tmp_path)
    change_weights(tmp_path, lambda w: w["model.norm.weight"][:1].fill_(float("inf")))
    said = run_ranks(_load_sharded, str(tmp_path))
    assert all("nan or inf" in line for line in said)
    assert any("model.norm.weight" in line for line in said)


def test_an_adapter_beside_whole_weights_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers put the adapter on top: chat used it silently, and stage 1 said that every weight is frozen."""
    folder = save_tiny(tmp_path / "model")
    plain = tiny_lm().state_dict()
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    assert (folder / "adapter_config.json").exists()
    _say_adapter.cache_clear()
    for _ in range(2):
        model: Any = load_causal_lm(Loading(str(folder)))
        found = model.state_dict()
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[key], plain[key]) for key in plain)
        assert all(p.requires_grad for p in model.parameters())
        assert model.name_or_path == str(folder)
    said = capsys.readouterr().err
    assert said.count("holds an adapter beside the whole model: the model is used without it") == 1


def test_ids_beyond_a_vocabulary_with_gaps_have_a_row(tmp_path: Path) -> None:
    """The number of tokens was taken for the largest id: a token beyond it was an IndexError in the embedding."""
    folder = save_tiny(tmp_path / "model")
    described = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 400  # of 320 rows
    (folder / "tokenizer.json").write_text(json.dumps(described))
    from rlhf.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    model: Any = load_causal_lm(Loading(str(folder), tokenizer))
    assert len(tokenizer) < 320
    assert model.get_input_embeddings().weight.shape[0] == 448
    assert torch.isfinite(model(input_ids=torch.tensor([[400, 5]])).logits).all()


def test_logits_that_are_more_than_the_output_embedding_are_refused() -> None:
    """A family may scale its logits by a field that is not known here; everything would be trained on wrong numbers."""
    model: Any = tiny_lm("llama")
    check_head(model)
    inner = model.forward

    def scaled(**inputs: Any) -> Any:
        output = inner(**inputs)
        output.logits = output.logits * 1.5
        return output

    model.forward = scaled
    with pytest.raises(ModelError, match="model of type llama is not supported"):
        CausalModel(model)
