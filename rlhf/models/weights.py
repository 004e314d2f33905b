"""The weights of a model's folder, by their headers: what keeps them from being loaded, found without reading them.

Imports no torch.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.file_signs import lfs_pointer

# What transformers looks for, in this order: one file, or the index of several.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = tuple(f"{name}.index.json" for name in _WHOLE)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$")
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_WEIGHT = re.compile(r"(^|[._])q?weight(_packed)?$")  # masks and positions may be whole numbers
# Numbers that a weight cannot be trained in: those of quantised models.
_QUANTISED = re.compile(r"^(F8_|F4|F6_|I4|I8|U8|I16|U16|I32|U32|I64|U64)")


def weight_problems(folder: Path) -> list[str]:
    """What is wrong with the weights of a model's folder; lines that go on after the folder's name."""
    name = next((n for pair in zip(_WHOLE, _INDEX, strict=True) for n in pair if (folder / n).exists()), None)
    if name is None:
        return [_no_weights(folder)]
    file = folder / name
    if lfs_pointer(file):
        return [_pointer_line(name)]
    if name in _WHOLE:
        return _file_problems(file)
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(shard) for shard in index.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{name} is no index of weights"]
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return [f"{missing[0]}{more} of the {len(shards)} files of {name} is missing; download the model again"]
    return [problem for shard in shards for problem in _file_problems(folder / shard)][:3]


def _no_weights(folder: Path) -> str:
    """What a folder without weights in the right place holds instead."""
    names = sorted(file.name for file in folder.iterdir())
    if shards := [name for name in names if _SHARD.search(name)]:
        return f"holds {shards[0]}, but not the index of its files (model.safetensors.index.json)"
    for end, what in ((".gguf", "GGUF"), (".h5", "TensorFlow"), (".msgpack", "Flax"), (".pth", "PyTorch checkpoint")):
        if found := next((name for name in names if name.endswith(end)), None):
            return f"holds {what} weights ({found}); give the model in the Hugging Face format (model.safetensors)"
    other = next((name for name in names if name.endswith(".safetensors")), None)
    also = f"; {other} is not a name that transformers reads" if other else ""
    return f"the folder holds no weights (model.safetensors){also}"


def _pointer_line(name: str) -> str:
    return f"{name} is a Git LFS pointer, not the file itself; run `git lfs pull` in the folder"


def _file_problems(file: Path) -> list[str]:
    """What is wrong with one file of weights, as far as its size and header tell."""
    if lfs_pointer(file):
        return [_pointer_line(file.name)]
    if not file.name.endswith(".safetensors"):
        with file.open("rb") as stream:
            is_archive = stream.read(2) == b"PK"
        if file.stat().st_size == 0 or (is_archive and not zipfile.is_zipfile(file)):
            return [f"{file.name} ends too early; download it again"]
        return []
    try:
        header, begin = _header(file)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = begin + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        dtypes = {name: str(entry["dtype"]) for name, entry in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return [f"{file.name} is no safetensors file, or ends too early; download it again"]
    size = file.stat().st_size
    if size < end:
        return [f"{file.name} ends too early: it has {size:,} of {end:,} bytes; download it again"]
    wrong = next((name for name, dtype in dtypes.items() if _QUANTISED.match(dtype) and _WEIGHT.search(name)), None)
    if wrong:
        return [f"{wrong} is in {dtypes[wrong]}: quantised weights cannot be trained; give the model in bf16 or fp32"]
    return []


def _header(file: Path) -> tuple[Mapping[str, Any], int]:
    """The header of a safetensors file, and where its data begins. Raises ValueError."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, file.stat().st_size - 8):
            raise ValueError("no header")
        return json.loads(stream.read(length)), 8 + length
