"""Chat with folders: a model's answers, and what cannot talk is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from rlhf.chat.session import main
from rlhf.errors import ConfigError, ModelError
from tests.helpers.fakes import NO_WEIGHTS
from tests.helpers.tiny import save_tiny


def test_chat_answers_piped_lines_of_a_real_folder(tmp_path: Path):
    """The whole way with a tiny model: load, stream, exit at the end of the input; the same seed says the same."""
    folder = save_tiny(tmp_path / "tiny")
    arguments = [str(folder), "--seed", "3", "--max-new-tokens", "6"]
    results = [
        CliRunner().invoke(main, arguments, input="hi\n\n/undo\nho", standalone_mode=False, catch_exceptions=False)
        for _ in range(2)
    ]
    assert [r.return_value for r in results] == [0, 0]
    assert results[0].stdout == results[1].stdout != ""
    assert "removed: hi" in results[0].stderr


def config_folder(folder: Path, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    (folder / "tokenizer.json").touch()
    return folder


def refused(*arguments) -> list[str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments], standalone_mode=False)
    assert isinstance(result.exception, (ModelError, ConfigError))
    return result.exception.problems


def test_a_missing_folder_is_one_line(tmp_path: Path):
    (line,) = refused(tmp_path / "none")
    assert line.startswith(f"MODEL {tmp_path}/none: no folder {tmp_path}/none; give a model folder")


def test_a_reward_model_cannot_talk(tmp_path: Path):
    reward = config_folder(tmp_path / "reward", architectures=["LlamaForSequenceClassification"], id2label={"0": "x"})
    actor = config_folder(tmp_path / "actor", architectures=["LlamaForCausalLM"])
    assert refused(actor, "--compare", reward) == [f"--compare {reward}: is a reward model, not a language model"]


def test_a_bad_setting_is_one_line():
    assert refused("x", "--temperature", "-1") == [
        "temperature=-1.0 is not valid: should be greater than or equal to 0"
    ]
