"""What is said of a model before torch is loaded: one line each, with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ModelError
from rlhf.models.names import (
    check_model,
    check_speaker,
    has_embedded_adapter,
    has_scalar_head,
    length_problems,
    read_config,
    resolve,
)
from tests.helpers.fakes import NO_WEIGHTS


def save(folder: Path, *, weights: bool = True, tokenizer: bool = True, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    value = {"architectures": ["OPTForCausalLM"], "model_type": "opt", **config}
    (folder / "config.json").write_text(json.dumps(value))
    if weights:
        (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    if tokenizer:
        (folder / "tokenizer.json").touch()
    return str(folder)


def test_aliases_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("opt-13b") == "facebook/opt-13b"
    assert resolve("OPT-350m") == "facebook/opt-350m"
    assert resolve("org/name") == "org/name"
    assert resolve(str(tmp_path)) == str(tmp_path)
    (tmp_path / "opt-13b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("opt-13b") == "opt-13b", "a folder of that name wins"


def test_a_good_folder_has_no_problems(tmp_path: Path) -> None:
    assert check_model(save(tmp_path / "m"), flag="--model") == []


def test_a_missing_folder_is_told_from_a_hub_name(tmp_path: Path) -> None:
    (problem,) = check_model(str(tmp_path / "none"), flag="--actor-model")
    assert problem.startswith("--actor-model ")
    assert "no folder" in problem
    assert "give a model folder, a hub name (org/name) or an alias" in problem


def test_offline_a_hub_name_cannot_be_reached() -> None:
    (problem,) = check_model("opt-1.3b", flag="--actor-model")
    assert "facebook/opt-1.3b cannot be reached" in problem
    assert "go online or give a model folder" in problem


def test_a_mistyped_alias_gets_the_nearest() -> None:
    (problem,) = check_model("opt-1.3", flag="--actor-model")
    assert "did you mean 'opt-1.3b'?" in problem


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": False}, "holds no weights"),
        ({"tokenizer": False}, "holds no tokenizer"),
    ],
)
def test_half_a_folder_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert any(message in problem for problem in check_model(save(tmp_path / "m", **change), flag="--model"))


def test_everything_is_said_at_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", weights=False, tokenizer=False)
    assert len(check_model(folder, flag="--reward-model", kind="reward")) == 3


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "holds no config.json"),
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; run `git lfs pull`"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_config(str(tmp_path))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"is a file; give the folder that holds config\.json"):
        read_config(str(tmp_path / "model.bin"))


def test_nothing_given_says_what_is_needed() -> None:
    assert check_model("", flag="--model") == [
        "--model is needed: a model folder, a hub name or an alias such as opt-1.3b"
    ]


def test_heads_are_told_apart(tmp_path: Path) -> None:
    scorer = {"architectures": ["OPTForSequenceClassification"], "num_labels": 1}
    assert has_scalar_head(scorer)
    # how transformers saves one label, and the default of two
    assert has_scalar_head({"architectures": ["OPTForSequenceClassification"], "id2label": {"0": "LABEL_0"}})
    assert not has_scalar_head({"architectures": ["OPTForSequenceClassification"]})
    assert not has_scalar_head({"architectures": ["OPTForCausalLM"], "num_labels": 1})
    language, reward = save(tmp_path / "lm"), save(tmp_path / "rm", **scorer)
    assert "has no scalar head" in check_model(language, flag="--reward-model", kind="reward")[0]
    assert "is a reward model, not a language model" in check_model(reward, flag="--actor-model", kind="language")[0]
    assert check_model(reward, flag="--reward-model", kind="reward") == []
    assert check_model(reward, flag="--model") == []


def test_lengths_that_do_not_fit_the_positions(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", max_position_embeddings=128)
    assert length_problems(read_config(folder), folder, 128) == []
    (problem,) = length_problems(read_config(folder), folder, 140)
    assert "140 tokens" in problem
    assert "128 positions; lower one of them by 12" in problem
    assert (
        length_problems(read_config(save(tmp_path / "bloom")), "bloom", 10**6) == []
    )  # no positions in its config: no limit


def test_a_bare_adapter_is_named_with_its_base_and_how_to_merge_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (problem,) = check_model(str(tmp_path), flag="--actor-model")
    assert "holds an adapter of org/base (adapter_config.json), not a whole model" in problem
    assert "merge_and_unload()" in problem
    assert not has_embedded_adapter(str(tmp_path))
    assert has_embedded_adapter(save(tmp_path))


@pytest.mark.parametrize(
    "config, kind, message",
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "language", "is an encoder"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "any", "quantised (awq, 4 bits)"),
        (
            {"architectures": ["OPTForSequenceClassification"], "num_labels": 5},
            "any",
            "is a classifier (OPTForSequenceClassification, 5 labels), not a language model or a reward model",
        ),
        (
            {"architectures": ["OPTModel"], "tie_word_embeddings": False},
            "language",
            "is a backbone without a language head (OPTModel)",
        ),
        ({"model_type": "deberta-v2", "architectures": ["X"], "num_labels": 1}, "reward", "is no language model (X)"),
    ],
)
def test_a_model_of_the_wrong_kind_is_named(tmp_path: Path, config: dict[str, Any], kind: Any, message: str) -> None:
    (problem,) = check_model(save(tmp_path / "m", **config), flag="--model", kind=kind)
    assert problem.startswith(f"--model {tmp_path}/m: ")
    assert message in problem


def test_a_scalar_head_is_known_by_its_one_label() -> None:
    """Other tools write the name of the label and no number; a broken list of architectures says nothing."""
    assert has_scalar_head({"architectures": ["GraniteForSequenceClassification"], "id2label": {"0": "LABEL_0"}})
    for architectures in (None, [], "LlamaForSequenceClassification", [None]):
        assert not has_scalar_head({"architectures": architectures, "num_labels": 1})


def test_what_cannot_be_sampled_can_still_be_trained(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", model_type="rwkv", architectures=["RwkvForCausalLM"])
    assert check_model(folder, flag="--actor-model", kind="language") == []
    (problem,) = check_speaker(folder, flag="MODEL")
    assert problem.startswith(f"MODEL {folder}: is of type rwkv, which has no cache that the sampler can use")


def test_code_of_its_own_needs_the_flag(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", model_type="own", auto_map={"AutoModelForCausalLM": "own.Model"})
    (problem,) = check_model(folder, flag="--model", kind="language")
    assert "if you trust that code, add --trust-remote-code" in problem
    assert check_model(folder, flag="--model", kind="language", trust_remote_code=True) == []
    (problem,) = check_model(folder, flag="--model", trust_remote_code=True)
    assert "has no sequence classifier" in problem


@pytest.mark.parametrize("text", ['{"vocab_size": ' + "9" * 5000 + "}", "[" * 100_000, '{"a": "\udce9"}'])
def test_a_config_that_python_cannot_read_is_one_line(tmp_path: Path, text: str) -> None:
    """A number of 5,000 digits, or deep nesting, ended in a traceback."""
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_config(str(tmp_path))


def test_the_home_of_nobody_is_a_name_like_others() -> None:
    with pytest.raises(ModelError, match="no folder ~nobody-here/model"):
        read_config("~nobody-here/model")
