"""Several end tokens: read from the configs, kept at export, and never used for padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.generation.speaker import load_speaker
from rlhf.models.end_tokens import listed, listed_in
from rlhf.models.export import export
from rlhf.models.loading import Loading, load_causal_lm, load_tokenizer
from tests.helpers.tiny import save_tiny, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")


def save(folder: Path, eos: Any, *, file: str = "generation_config.json", pad: str = "<pad>") -> str:
    """A model whose tokenizer has `<|endoftext|>` (id 259) beside `</s>` (id 2), with `eos_token_id` in a config."""
    save_tiny(folder)
    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": eos}))
    return str(folder)


def load(folder: str) -> Any:
    return load_causal_lm(Loading(folder, load_tokenizer(folder)))


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_all_end_tokens_are_kept_the_trained_one_first(tmp_path: Path, file: str) -> None:
    """Loading left the template's alone in the config, so the others were lost at export, and nothing stopped at
    them."""
    folder = save(tmp_path / "model", [259, 2, 30], file=file)
    model = load(folder)
    assert model.generation_config.eos_token_id == [2, 259, 30]
    export(model, tmp_path / "exported", tokenizer=load_tokenizer(folder))
    written = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 259, 30]
    assert load(str(tmp_path / "exported")).generation_config.eos_token_id == [2, 259, 30]


@pytest.mark.parametrize(("eos", "kept"), [(259, [2, 259]), (2, 2), (77, 2), (None, 2), ([2], 2), ([2, 999], 2)])
def test_one_end_token_counts_if_the_tokenizer_added_it(tmp_path: Path, eos: Any, kept: Any) -> None:
    """The default of a family is a word of another family's vocabulary, at which no answer may end. An id that the
    model cannot draw is left out."""
    assert load(save(tmp_path, eos)).generation_config.eos_token_id == kept


def test_chat_and_evaluation_stop_at_each(tmp_path: Path) -> None:
    speaker = load_speaker(save(tmp_path, [259, 2]), label="m", dtype="fp32")
    assert speaker.stops.end_ids == (2, 259)


def test_another_end_token_does_not_pad(tmp_path: Path) -> None:
    """Qwen pads with `<|endoftext|>`, which its generation config lists: a reward model would overlook such an end."""
    assert load_tokenizer(save(tmp_path / "a", [2, 259], pad="<|endoftext|>")).pad_token == "<pad>"
    assert load_tokenizer(save(tmp_path / "b", 2, pad="<|endoftext|>")).pad_token == "<|endoftext|>"


def test_a_config_may_list_none(tmp_path: Path) -> None:
    assert listed_in(str(tmp_path)) == listed({}) == listed(None) == []
    (tmp_path / "generation_config.json").write_text("{broken")
    assert listed_in(str(tmp_path)) == []
