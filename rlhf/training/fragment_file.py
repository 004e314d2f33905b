"""A safetensors file that is written tensor by tensor, with its digest. The library's `save_file` wants all tensors in
CPU memory at once, and the digest would need a second reading: a checkpoint of 13B weights has 200 GB."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def new_digest() -> Any:
    """The hash of a checkpoint's files."""
    return hashlib.blake2b(digest_size=16)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write flat tensors on any device as a safetensors file, on the disk when this returns; the file's digest.

    The layout: eight bytes of the header's length, the header as JSON, and the tensors one after another.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = new_digest()
    with path.open("wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            file.write(block)
            digest.update(block)
        for tensor in tensors.values():
            block: Any = tensor.detach().contiguous().cpu().view(torch.uint8).numpy()
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
