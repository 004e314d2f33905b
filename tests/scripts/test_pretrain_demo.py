"""The demo's preparation: a tiny base model made on the spot, kept, and found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf.config import build
from rlhf.pipeline.config import PipelineConfig
from scripts import pretrain_demo
from scripts.pretrain_demo import DemoSettings, main, make_tokenizer, prepare
from tests.helpers.golden import check_content
from tests.helpers.untrained import untrained

TINY = {"hidden_size": 32, "layers": 1, "steps": 2, "batch_tokens": 256, "vocabulary": 600}


def settings(tmp_path: Path, **changes) -> DemoSettings:  # type: ignore[no-untyped-def]
    return DemoSettings(output_dir=tmp_path / "out", cache_dir=tmp_path / "cache", **{**TINY, **changes})


def weights(folder: Path) -> bytes:
    return (folder / "base" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_command_writes_a_model_data_and_what_the_pipeline_starts_from(tmp_path: Path) -> None:
    from rlhf.models.loading import Loading, load_causal_lm, load_tokenizer

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    arguments = ["--output-dir", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache"), *flags]
    result = CliRunner().invoke(main, arguments, standalone_mode=False)
    assert result.exit_code == 0, result.output
    assert "pretrained in" in result.output

    values = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))
    prompts = Path(values.pop("evaluate")["prompts"])
    pipeline = build(PipelineConfig, values, where="pipeline")
    assert pipeline.actor_model and pipeline.data_path
    tokenizer = load_tokenizer(pipeline.actor_model)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert load_causal_lm(Loading(pipeline.actor_model, tokenizer)).num_parameters() > 0
    for source, columns in zip(pipeline.data_path, ("prompt response", "prompt chosen rejected"), strict=True):
        rows = Path(source.rpartition(":")[0]).read_text(encoding="utf-8").splitlines()
        assert set(json.loads(rows[0])) == set(columns.split())
    assert set(json.loads(prompts.read_text().splitlines()[0])) == {"prompt"}


@pytest.mark.slow
def test_what_was_made_is_found_again_and_another_seed_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(settings(tmp_path))
    before = weights(first)
    with monkeypatch.context() as patch:
        patch.setattr("scripts.tiny_base.pretrain", lambda *_: pytest.fail("pretrained again"))
        assert prepare(settings(tmp_path)) == first
    other = prepare(settings(tmp_path, seed=1))
    assert other != first
    assert weights(other) != before


@pytest.mark.slow
def test_same_seed_same_weights(tmp_path: Path) -> None:
    """Two machines, or a cache that was cleared, must give the same base model."""
    first = prepare(settings(tmp_path, steps=3))
    second = prepare(settings(tmp_path / "elsewhere", steps=3))
    assert first != second
    assert weights(first) == weights(second)


def test_the_format_of_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained weights differ from machine to machine in their last digits; what decides them does not: the data, the
    tokenizer's vocabulary, the very batches of ids, and how the model is built and trained on them."""
    decided = untrained(monkeypatch)
    monkeypatch.setattr(pretrain_demo, "facts_read", lambda *_: 0.0)
    folder = prepare(settings(tmp_path, steps=20))
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jsonl"))}
    assert list(files) == ["demonstrations.jsonl", "held_out_prompts.jsonl", "preferences.jsonl", "pretraining.jsonl"]
    check_content([files, decided], "b66edbe04e15301d48513df3", cache="base model", file="scripts/pretrain_demo.py")


def test_text_comes_back_from_its_ids_as_it_was() -> None:
    """Also text that the demo knows nothing of: whoever chats with it may write anything."""
    tokenizer = make_tokenizer(DemoSettings())
    for text in ("I live in Reykjavik. What is my city?", "Grüße, ¿qué tal? 你好 🙂\n\ttab", "a  b"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    ids = tokenizer(" Lisbon October hamster teacher", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4  # the demo's words are one token each
