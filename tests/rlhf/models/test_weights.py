"""Weights judged by their headers: what cannot be loaded is named, and what can is let through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlhf.models.weights import weight_problems

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"
NAME = "model.safetensors"


def save(file: Path, **tensors: torch.Tensor) -> None:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def write_index(folder: Path, **places: str) -> None:
    value: Any = {"metadata": {}, "weight_map": {name.replace("__", "."): file for name, file in places.items()}}
    (folder / f"{NAME}.index.json").write_text(json.dumps(value))


def two_shards(folder: Path) -> None:
    save(folder / "a.safetensors", x__weight=torch.zeros(3))
    save(folder / "b.safetensors", y__weight=torch.zeros(3))
    write_index(folder, x__weight="a.safetensors", y__weight="b.safetensors")


def test_whole_files_and_shards_are_fine(tmp_path: Path) -> None:
    """Masks that older models keep as numbers of one byte are no quantised weights."""
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / NAME, w__weight=torch.zeros(3), attn__bias=torch.ones(1, 1, 4, 4, dtype=torch.uint8))
    assert weight_problems(tmp_path / "one") == []
    (tmp_path / "two").mkdir()
    two_shards(tmp_path / "two")
    assert weight_problems(tmp_path / "two") == []
    (tmp_path / "bin").mkdir()
    torch.save({"w": torch.zeros(3)}, tmp_path / "bin" / "pytorch_model.bin")
    assert weight_problems(tmp_path / "bin") == []


def cut(folder: Path) -> None:
    save(folder / NAME, w__weight=torch.zeros(100))
    content = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(content[:-8])


def cut_archive(folder: Path) -> None:
    torch.save({"w": torch.zeros(100)}, folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[:-40])


def without_second(folder: Path) -> None:
    two_shards(folder)
    (folder / "b.safetensors").unlink()


def pointer_as_shard(folder: Path) -> None:
    two_shards(folder)
    (folder / "b.safetensors").write_text(POINTER)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "the folder holds no weights (model.safetensors)"),
        (lambda f: (f / NAME).write_text(POINTER), "model.safetensors is a Git LFS pointer, not the file itself"),
        (lambda f: (f / "pytorch_model.bin").write_text(POINTER), "pytorch_model.bin is a Git LFS pointer"),
        (lambda f: (f / NAME).touch(), "model.safetensors is no safetensors file, or ends too early"),
        (lambda f: (f / NAME).write_bytes(b"\xff" * 40), "model.safetensors is no safetensors file"),
        (cut, "model.safetensors ends too early: it has"),
        (cut_archive, "pytorch_model.bin ends too early"),
        (without_second, "b.safetensors of the 2 files of model.safetensors.index.json is missing"),
        (pointer_as_shard, "b.safetensors is a Git LFS pointer"),
        (lambda f: (f / f"{NAME}.index.json").write_text("[]"), "model.safetensors.index.json is no index of weights"),
        (lambda f: (f / "m-00001-of-00002.safetensors").touch(), "but not the index of its files"),
        (lambda f: (f / "m.gguf").touch(), "holds GGUF weights (m.gguf)"),
        (lambda f: (f / "weights.safetensors").touch(), "weights.safetensors is not a name that transformers reads"),
        (
            lambda f: save(f / NAME, q_proj__weight=torch.zeros(3, dtype=torch.int8)),
            "q_proj.weight is in I8: quantised weights cannot be trained",
        ),
        (
            lambda f: save(f / NAME, q_proj__weight=torch.zeros(3).to(torch.float8_e4m3fn)),
            "q_proj.weight is in F8_E4M3: quantised weights cannot be trained",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path)
    (problem,) = weight_problems(tmp_path)
    assert message in problem
