"""The scalar head on families for which transformers has no sequence classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_layers import GenericForSequenceClassification

from rlhf.models.export import export
from rlhf.models.loading import Loading, load_tokenizer
from rlhf.models.names import check_model, has_scalar_head
from rlhf.models.scalar_model import ScalarModel, load_scalar_model
from tests.helpers.stateful import STATEFUL
from tests.helpers.tiny import VOCABULARY, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")
_SMALL: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=128,
)  # fmt: skip
WITHOUT: dict[str, Any] = {
    "granite": lambda: hf.GraniteConfig(**_SMALL, embedding_multiplier=3.0, logits_scaling=4.0),
    "cohere": lambda: hf.CohereConfig(**_SMALL),
    "cohere2": lambda: hf.Cohere2Config(**_SMALL),
    "olmoe": lambda: hf.OlmoeConfig(**_SMALL, num_experts=2, num_experts_per_tok=1),
    "lfm2": STATEFUL["lfm2"],
    "mamba": STATEFUL["mamba"],  # its backbone is not called `model`
    "falcon_h1": STATEFUL["falcon_h1"],  # computes buffers when it is loaded
}
IDS = torch.tensor([[5, 9, 2, 44, 101, 7], [7, 8, 60, 0, 0, 0]])


def save_lm(folder: Path, family: str) -> Any:
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(WITHOUT[family](), dtype=torch.float32).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", WITHOUT)
def test_a_head_goes_on_the_backbone_and_comes_back_from_disk(family: str, tmp_path: Path) -> None:
    """Stage 2 refused these families after stage 1 had been paid for."""
    lm = save_lm(tmp_path / "lm", family)
    tokenizer = load_tokenizer(str(tmp_path / "lm"))
    loaded: Any = load_scalar_model(Loading(str(tmp_path / "lm"), tokenizer), new_head=True, seed=3)
    assert loaded.score.weight.shape == (1, 32)
    with torch.no_grad():
        hidden = lm.base_model(input_ids=IDS, use_cache=False)[0]
        wanted = hidden @ loaded.score.weight[0]
        found = ScalarModel(loaded)(IDS)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    export(loaded, tmp_path / "rm", tokenizer=tokenizer, config_changes={"score_mean": 0.5, "score_std": 2.0})
    config = json.loads((tmp_path / "rm/config.json").read_text())
    assert has_scalar_head(config)
    assert check_model(str(tmp_path / "rm"), flag="--reward-model", kind="reward") == []
    again = load_scalar_model(Loading(str(tmp_path / "rm"), tokenizer))
    assert (again.config.score_mean, again.config.score_std) == (0.5, 2.0)
    with torch.no_grad():
        assert torch.equal(ScalarModel(again)(IDS), found)


def test_plain_transformers_reads_it_with_four_lines(tmp_path: Path) -> None:
    """The lines of docs/extending.md: a class of transformers' own parts."""
    save_lm(tmp_path / "lm", "granite")
    tokenizer = load_tokenizer(str(tmp_path / "lm"))
    ours = load_scalar_model(Loading(str(tmp_path / "lm"), tokenizer), new_head=True)
    export(ours, tmp_path / "rm", tokenizer=tokenizer)

    class GraniteForSequenceClassification(GenericForSequenceClassification, hf.GranitePreTrainedModel):
        pass

    plain: Any = GraniteForSequenceClassification.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        wanted = ScalarModel(ours)(IDS)
        scores = plain(input_ids=IDS).logits[:, 0]
    torch.testing.assert_close(scores, torch.stack([wanted[0, 5], wanted[1, 2]]), rtol=1e-5, atol=1e-6)


def test_families_with_a_classifier_keep_it(tmp_path: Path) -> None:
    hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**_SMALL)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_scalar_model(Loading(str(tmp_path), load_tokenizer(str(tmp_path))), new_head=True)
    assert type(loaded) is hf.LlamaForSequenceClassification
