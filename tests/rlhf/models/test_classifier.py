"""Sequence classifiers of other tools as reward models: whatever their head, the scores are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from rlhf.errors import ModelError
from rlhf.models.loading import Loading, load_tokenizer
from rlhf.models.names import check_model, template_problems
from rlhf.models.reward_model import load_reward_model
from rlhf.template import Message
from tests.helpers.tiny import FAMILIES, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=96
)


def save(folder: Path, kind: str, *, labels: int = 1, template: str | None = TEMPLATE) -> Path:
    """A classifier as plain transformers saves it."""
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    encoders = {"bert": hf.BertConfig, "modernbert": hf.ModernBertConfig, "deberta": hf.DebertaV2Config}
    pad: Any = tokenizer.pad_token_id
    config: Any = encoders[kind](vocab_size=320, pad_token_id=pad, **SIZES) if kind in encoders else FAMILIES[kind]()
    config.num_labels, config.pad_token_id = labels, pad
    model: Any = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "modernbert", "deberta"])
def test_scores_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """Of sequences of different lengths, scored together."""
    folder = save(tmp_path / kind, kind)
    tokenizer = load_tokenizer(str(folder), own_template=True)
    reward_model = load_reward_model(Loading(str(folder), tokenizer, no_dropout=True), is_any=True)
    assert reward_model.pools == (kind in ("bert", "modernbert", "deberta"))
    question: list[Message] = [{"role": "user", "content": "Why?"}]
    sequences = [reward_model.sequence(question, text, ended=True) for text in ("So.", "Because it is so.", "")]
    plain: Any = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = [float(plain(input_ids=torch.tensor([ids])).logits) for ids in sequences]
    assert reward_model.scores(sequences).tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-4


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_classifiers_with_one_output_can_score(tmp_path: Path, kind: str) -> None:
    folder = str(save(tmp_path / kind, kind))
    assert check_model(folder, flag="--reward", kind="scorer") == []
    assert template_problems(folder, flag="--reward") == []


def test_a_classifier_with_two_labels_cannot(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "two", "llama", labels=2))
    (line,) = check_model(folder, flag="--reward", kind="scorer")
    assert line == f"--reward {folder}: is a classifier with 2 labels; a reward model has one output"


def test_a_language_model_cannot(tmp_path: Path) -> None:
    from tests.helpers.tiny import save_tiny

    (line,) = check_model(str(save_tiny(tmp_path / "lm")), flag="--reward", kind="scorer")
    assert "is no sequence classifier (its config names LlamaForCausalLM)" in line


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    """Its scores would be those of a text that it has never seen the like of."""
    folder = str(save(tmp_path / "bare", "llama", template=None))
    (line,) = template_problems(folder, flag="--reward")
    assert line.startswith(f"--reward {folder}: its tokenizer has no chat template")
    with pytest.raises(ModelError, match="its tokenizer has no chat template"):
        load_tokenizer(folder, own_template=True)
