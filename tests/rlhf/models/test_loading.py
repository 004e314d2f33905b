"""Loading: strict about weights, pad ≠ end, embeddings that fit the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rlhf.errors import ConfigError, ModelError
from rlhf.models.loading import Loading, dtype_of, load_causal_lm, load_tokenizer, unwrap
from rlhf.models.scalar_model import ScalarModel, draw_head, load_scalar_model, score_affine, values_at
from rlhf.training import distributed
from rlhf.training.engine import gathered
from tests.helpers.ppo import save_reward_model
from tests.helpers.tiny import FAMILIES, save_tiny, tiny_lm, tiny_tokenizer

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def change_weights(folder: Path, change: Callable[[Weights], Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# --- strict -----------------------------------------------------------------------------------------------------------


def test_a_missing_weight_is_named(folder: Path) -> None:
    """transformers itself would draw it at random and say so in a log that nobody reads."""
    change_weights(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight$"):
        load_causal_lm(Loading(str(folder)))


def test_many_missing_weights_are_counted(folder: Path) -> None:
    def drop(weights: Weights) -> None:
        for name in [n for n in weights if ".0.mlp." in n or "layernorm" in n]:
            del weights[name]

    change_weights(folder, drop)
    with pytest.raises(ModelError, match=r"lacks .*, .*, .* and 4 more"):
        load_causal_lm(Loading(str(folder)))


def test_a_left_over_weight_is_named(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)}))
    with pytest.raises(ModelError, match=r"holds what the model does not know: model\.layers\.2\.mlp\.up_proj\.weight"):
        load_causal_lm(Loading(str(folder)))


def test_a_weight_of_another_shape_is_named(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(ModelError, match=str(folder)) as caught:
        load_causal_lm(Loading(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(Loading(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_language_model_is_no_reward_model(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks score\.weight"):
        load_scalar_model(Loading(str(folder), tiny_tokenizer()))


def test_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    """Its language head would be drawn at random."""
    save_reward_model(tmp_path)
    with pytest.raises(ModelError, match="lm_head"):
        load_causal_lm(Loading(str(tmp_path)))


# --- pad ≠ end --------------------------------------------------------------------------------------------------------


def save_tokenizer(folder: Path, pad: str | None, *special: str) -> str:
    tokenizer = tiny_tokenizer(pad)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_pad_of_its_own_stays(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, "<pad>"))
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<pad>", "right")


@pytest.mark.parametrize("pad", [None, "</s>", "<s>"])
def test_a_pad_that_ends_or_begins_is_replaced(tmp_path: Path, pad: str | None) -> None:
    """Not even bos may pad: OPT's bos is its end token."""
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, pad))
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id == 258
    again = load_tokenizer(str(_saved(tokenizer, tmp_path / "next stage")))
    assert (again.pad_token_id, len(again)) == (258, len(tokenizer))


def _saved(tokenizer: Any, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def test_an_unused_special_token_is_taken_first(tmp_path: Path) -> None:
    """Llama 3 reserves tokens and Qwen has one for padding: the embeddings need not grow."""
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, None, "<|tool|>", "<|reserved_1|>"))
    assert tokenizer.pad_token == "<|reserved_1|>"
    assert len(tokenizer) == 260


def test_what_the_template_writes_does_not_pad(tmp_path: Path) -> None:
    """The template's turn marks are special tokens, too, and they count."""
    tokenizer = tiny_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})  # type: ignore[arg-type]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<|pad|>"


def test_embeddings_grow_to_a_multiple_of_64_and_begin_in_the_middle(tmp_path: Path) -> None:
    """New rows are the mean of the old: in a model whose logits all lie far below zero a random row would win every
    draw."""
    lm: Any = tiny_lm("gpt2")
    lm.resize_token_embeddings(258)
    with torch.no_grad():
        lm.transformer.ln_f.bias.fill_(1.0)
        lm.transformer.wte.weight.sub_(3.0)  # every logit falls by about 3 · 32
    lm.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, None))
    grown: Any = load_causal_lm(Loading(str(tmp_path), tokenizer))
    weight: Any = grown.get_input_embeddings().weight.detach()
    assert weight.shape[0] == 320
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight
    torch.testing.assert_close(weight[258:], weight[:258].mean(dim=0).expand(62, -1))
    with torch.no_grad():
        p = grown(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    assert float(p[258:].sum()) < 62 / 320 * 2
    assert grown.generation_config.pad_token_id == grown.config.pad_token_id == 258


def test_embeddings_with_room_do_not_change(folder: Path) -> None:
    """The model has 320 rows, the tokenizer 259 tokens."""
    model: Any = load_causal_lm(Loading(str(folder), load_tokenizer(str(folder))))
    assert model.get_input_embeddings().weight.shape[0] == 320


# --- dtype ------------------------------------------------------------------------------------------------------------


def test_dtypes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "on_gpu", lambda: False)
    monkeypatch.setattr(distributed, "gpu_has_bf16", lambda: False)
    assert dtype_of("auto") == torch.float32
    assert dtype_of("bf16") == torch.bfloat16
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        dtype_of("fp16")


# --- the scalar head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_new_head_has_the_spread_of_the_backbones_output(family: str, tmp_path: Path) -> None:
    """std 1/√(D+1); D is 16 for the OPT whose output is projected, though its hidden size is 32."""
    save_tiny(tmp_path, family)
    model: Any = load_scalar_model(Loading(str(tmp_path), tiny_tokenizer()), new_head=True)
    size = 16 if family == "opt_projected" else 32
    assert model.score.weight.shape == (1, size)
    assert model.score.bias is None
    draws = []
    for seed in range(40):
        draw_head(model, seed)
        draws.append(model.score.weight.detach().clone())
    assert float(torch.cat(draws).std()) * (size + 1) ** 0.5 == pytest.approx(1.0, rel=0.1)
    assert not torch.equal(draws[0], draws[1])
    draw_head(model, 0)
    assert torch.equal(model.score.weight, draws[0])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_scalars_are_transformers_own_at_every_prefix(family: str, tmp_path: Path) -> None:
    """The scalar at t is what the classifier says of the first t + 1 tokens; padding on the right changes none."""
    save_reward_model(tmp_path, family)
    reference: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model = ScalarModel(load_scalar_model(Loading(str(tmp_path), tiny_tokenizer())))
    ids = torch.tensor([[5, 9, 2, 44], [7, 8, 0, 0]])
    with torch.no_grad():
        values = model(ids)
        for row, last in ((0, 0), (0, 2), (0, 3), (1, 1)):
            wanted = float(reference(input_ids=ids[row : row + 1, : last + 1]).logits)
            assert float(values[row, last]) == pytest.approx(wanted, abs=1e-5)
    assert values_at(values, torch.tensor([3, 1])).tolist() == [values[0, 3], values[1, 1]]


def test_scores_of_a_bf16_model_are_finer_than_bf16(tmp_path: Path) -> None:
    """In bf16 a score near 3 moves in steps of 0.016: pairs tied, and the spread of a young model was exactly 0."""
    save_reward_model(tmp_path)
    model = ScalarModel(load_scalar_model(Loading(str(tmp_path), tiny_tokenizer(), torch.bfloat16)))
    with torch.no_grad():
        values = model(torch.tensor([[5, 9, 2, 44, 7, 8]]))
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_affine_of_a_config() -> None:
    class Config:
        score_mean, score_std = 1.5, 0.5

    assert score_affine(Config) == (1.5, 0.5)
    Config.score_std = 1e-7
    with pytest.raises(ModelError, match="gives every answer the same score"):
        score_affine(Config)
    assert score_affine(object()) is None


# --- sharded ----------------------------------------------------------------------------------------------------------


def _load_sharded(folder: str) -> dict[str, Any]:
    """Under ZeRO-3 on two ranks: what a grown language model and a new scalar model hold, whole."""
    loading = Loading(folder, load_tokenizer(folder), zero_stage=3)
    out = {}
    for kind in ("lm", "scalar"):
        model: Any = load_causal_lm(loading) if kind == "lm" else load_scalar_model(loading, new_head=True, seed=3)
        sharded = [p for p in model.parameters() if hasattr(p, "ds_id")]
        assert sharded
        for name, parameter in unwrap(model).named_parameters():
            with gathered([parameter]):
                out[f"{kind} {name}"] = parameter.detach().clone()
    return out


def test_sharded_loading_reads_the_same_weights(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    lm: Any = tiny_lm("gpt2")
    lm.resize_token_embeddings(258)
    lm.save_pretrained(tmp_path)
    folder = save_tokenizer(tmp_path, None)
    loading = Loading(folder, load_tokenizer(folder))
    models = {"lm": load_causal_lm(loading), "scalar": load_scalar_model(loading, new_head=True, seed=3)}
    wanted = {f"{kind} {name}": p for kind, model in models.items() for name, p in model.named_parameters()}
    for found in run_ranks(_load_sharded, folder):
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name].detach(), msg=lambda m, n=name: f"{n}: {m}")
