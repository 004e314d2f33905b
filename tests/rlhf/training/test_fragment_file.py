"""A checkpoint's file is a safetensors file, and its digest is that of the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlhf.training.fragment_file import write_tensors


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    base = torch.randn(100)
    tensors = {
        "a|master|0": base[:7],
        "a|optimizer.exp_avg|3": base[::2],  # not contiguous
        "b": torch.randn(5).bfloat16(),
        "c": torch.arange(3),
        "empty": torch.zeros(0),
    }
    digest = write_tensors(tmp_path / "file.safetensors", tensors)
    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert digest == hashlib.blake2b((tmp_path / "file.safetensors").read_bytes(), digest_size=16).hexdigest()


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    """A rank without a fragment writes one."""
    write_tensors(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}
