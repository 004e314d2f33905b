"""What `load_strict` does about folders that are more than one model, and about weights that are no numbers."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf import console
from rlhf.errors import ModelError
from rlhf.models.names import has_embedded_adapter
from rlhf.training import distributed
from rlhf.training.zero_internals import is_sharded, own_part


@contextlib.contextmanager
def without_adapter(folder: str) -> Iterator[str]:
    """The folder to load whole weights from. transformers would put an adapter that lies beside them on top, and
    nothing else would be trained; so such a folder is replaced by links to all files that are not the adapter's."""
    if not has_embedded_adapter(folder):
        yield folder
        return
    _say_adapter(folder)
    with tempfile.TemporaryDirectory(prefix="rlhf-model-") as links:
        for file in Path(folder).resolve().iterdir():
            if not file.name.startswith("adapter_"):
                (Path(links) / file.name).symlink_to(file)
        yield links


@functools.cache
def _say_adapter(folder: str) -> None:
    console.warn(
        f"{folder} holds an adapter beside the whole model: the model is used without it. To use it, add it to the "
        "weights (peft: merge_and_unload) and save them in another folder"
    )


def refuse_not_finite(model: Any, name: str, *, dtype: str) -> None:
    """Raise ModelError that names weights with nan or inf, on all ranks."""
    parameters = dict(model.named_parameters())
    rank = distributed.rank()
    found = []
    for key, parameter in parameters.items():
        held = own_part(parameter, rank=rank)[0] if is_sharded(parameter) else parameter.detach()
        if held.is_floating_point() and not held.is_meta and not bool(held.isfinite().all()):
            found.append(key)
    anywhere = bool(found)
    if any(is_sharded(parameter) for parameter in parameters.values()):
        anywhere = distributed.max_over_ranks(anywhere) > 0
    if not anywhere:
        return
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    named = f": {', '.join(found[:3])}{more}" if found else " on another rank"
    raise ModelError(f"{name}: weights with nan or inf in {dtype}{named}; take a checkpoint from before it broke")
