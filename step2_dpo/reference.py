"""The reference's log-probabilities of all that is learned from: worked out once, before training, and kept beside the
checkpoints.

The reference is the model that training starts from, so it needs no copy of its own: the engine gives its
log-probabilities before the first step, with adapters off where there are any. A run that goes on reads them from the
file, or works them out again before its checkpoint is put back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.batches import own_micro_batches
from data.stage_data import StageData
from rlhf import console
from rlhf.models.lora import adapters_off, is_adapted
from rlhf.models.names import resolve
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step2_dpo.batches import Batch, token_logprobs
from step2_dpo.config import DPOConfig

FILE_NAME = "ref_logprobs.safetensors"
# Raise it when the same model and data would give other contents of the file.
FORMAT = 1

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Measure:
    """Gives what a policy's log-probabilities of rows are worth, row by row, on every rank; each works out a share."""

    engine: TrainEngine
    micro_batch_size: int
    done: Callable[[int], None] = lambda rows: None

    def __call__(
        self,
        rows: Sequence[int],
        collate: Callable[[list[int]], Batch],
        what: Callable[[Tensor, Batch], Iterable[Any]],
        *,
        lengths: Any,
    ) -> list[tuple[int, Any]]:
        """(row, `what` of the log-probabilities of its tokens) of each row, sorted; `lengths` of each of them."""
        mine: list[tuple[int, Any]] = []
        for part in own_micro_batches(rows, micro_batch_size=self.micro_batch_size, lengths=lengths):
            batch = collate(part)
            # an empty part has a row of padding, which `zip` leaves out
            mine += zip(part, what(token_logprobs(self.engine, batch), batch), strict=False)
            self.done(len(part) * distributed.world_size())
        return sorted((item for rank in distributed.gather_objects(mine) for item in rank), key=lambda item: item[0])


def kept_reference(
    engine: TrainEngine,
    config: DPOConfig,
    made_from: Mapping[str, Any],
    work_out: Callable[[Measure], Tensors],
    *,
    rows: int,
    unit: str,
) -> Tensors:
    """The tensors that `work_out` makes of the reference's log-probabilities of so many rows, from the file if it was
    made from the same; `engine` still holds the reference's weights."""
    path = config.output_dir / FILE_NAME
    wanted = json.dumps({"format": FORMAT, **made_from, **_of_model(config)})
    distributed.barrier()
    found = _read(path, wanted) if path.exists() else None
    if all(distributed.gather_objects(found is not None)):
        assert found is not None
        return found
    console.say(f"reference: log-probabilities of {rows:,} {unit}s, kept in {FILE_NAME}")
    with _as_reference(engine), console.progress("reference", total=rows, unit=unit) as bar:
        made = work_out(Measure(engine, config.micro_batch_size, lambda more: bar.update(min(bar.done + more, rows))))
    if distributed.is_main():
        _write(path, made, wanted)
    return made


@contextmanager
def _as_reference(engine: TrainEngine) -> Iterator[None]:
    engine.train(False)
    lm = engine.module.lm
    with torch.no_grad(), adapters_off(lm) if is_adapted(lm) else nullcontext():
        yield


# --- the file ---------------------------------------------------------------------------------------------------------


def of_data(data: StageData) -> dict[str, Any]:
    """The encoded rows, for what the file depends on."""
    return {part: data.report[part]["fingerprint"] for part in ("train", "held_out")}


def _of_model(config: DPOConfig) -> dict[str, Any]:
    """The model's files and its number format."""
    folder = Path(resolve(config.model))
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors"))]
    return {"model": [config.model, files], "dtype": config.dtype}


def _read(path: Path, wanted: str) -> Tensors | None:
    """The file's tensors; None if it was made from something else or cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("made_from") != wanted:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError):
        return None


def _write(path: Path, made: Tensors, wanted: str) -> None:
    part = path.with_name(f".{path.name}.part")
    save_file(made, str(part), metadata={"made_from": wanted})
    os.replace(part, path)
