"""What is downloaded before ranks load a model, from a pretended hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from rlhf.errors import ModelError
from rlhf.models import fetching
from rlhf.models.fetching import fetch

FILES = {
    "config.json": 1_000,
    "tokenizer.json": 2_000,
    "model-00001-of-00002.safetensors": 3_000_000_000,
    "model-00002-of-00002.safetensors": 2_000_000_000,
    "model.safetensors.index.json": 500,
    "pytorch_model.bin": 5_000_000_000,
    "onnx/model.onnx": 5_000_000_000,
    "README.md": 10,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """`hub(files, cached)` → what is downloaded, filled when something is."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching.socket, "gethostname", lambda: "gpu08")
    asked: list[Any] = []

    def put(files: dict[str, int], cached: tuple[str, ...] = ()) -> list[Any]:
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
        api = SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=siblings))
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, f: f if f in cached else None)
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.append((name, allow_patterns))
        )
        return asked

    return put


def test_one_kind_of_weights_and_the_small_files_are_downloaded_with_a_line(hub, capsys: Any) -> None:
    """Eight ranks began to download 26 GB, without a word."""
    asked = hub(FILES, cached=("model-00002-of-00002.safetensors",))
    fetch("opt-13b")
    ((name, files),) = asked
    assert name == "facebook/opt-13b"
    assert set(files) == set(FILES) - {"pytorch_model.bin", "onnx/model.onnx", "README.md"}
    assert "gpu08 downloads facebook/opt-13b, 3.0 GB" in capsys.readouterr().out


def test_older_weights_where_there_are_no_others(hub) -> None:
    asked = hub({"config.json": 1, "pytorch_model-00001-of-00001.bin": 5, "training_args.bin": 7})
    fetch("org/old")
    assert asked == [("org/old", ["pytorch_model-00001-of-00001.bin", "config.json"])]


def test_what_is_there_is_left_alone(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(FILES, cached=tuple(FILES))
    fetch("org/name")
    fetch(str(tmp_path))
    fetch("")
    hub(FILES)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch("org/name")
    assert asked == []


def test_a_download_that_fails(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(FILES)

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ModelError, match=r"^org/name could not be downloaded on gpu08: no route$"):
        fetch("org/name")
    hub(FILES, cached=("config.json",))  # the hub is away, but the model may be there: loading will say
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    fetch("org/name")
