"""The reference's log-probabilities of all pairs: worked out once, before training, and kept beside the checkpoints.

The reference is the model that training starts from, so it needs no copy of its own: the engine gives its
log-probabilities before the first step, with adapters off where there are any. A run that goes on reads them from the
file, or works them out again before its checkpoint is put back. M counted tokens of all held-out pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.stage_data import StageData
from rlhf import console
from rlhf.console.bars import Bar
from rlhf.models.lora import adapters_off, is_adapted
from rlhf.models.names import resolve
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step2_dpo.batches import PairBatch, collate, shares, sums_of, token_logprobs
from step2_dpo.config import DPOConfig

FILE_NAME = "ref_logprobs.safetensors"
# Raise it when the same model and data would give other contents of the file.
FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """log π_ref in nats, fp32, on the CPU. `train_R2`: sums over the tokens of the chosen and the rejected response of
    each training pair, NaN for pairs that no step takes. `held_out`: for each held-out pair those of all counted
    tokens, of the chosen response and then of the rejected one."""

    train_R2: Tensor
    held_out: list[Tensor]


def reference_of(engine: TrainEngine, data: StageData, rows: Sequence[int], config: DPOConfig, pad: int) -> Reference:
    """The reference of a run, whose steps take the training pairs `rows`; `engine` still holds its weights."""
    path = config.output_dir / FILE_NAME
    wanted = _made_from(data, rows, config)
    distributed.barrier()
    found = _read(path, wanted, data) if path.exists() else None
    if all(distributed.gather_objects(found is not None)):
        assert found is not None
        return found
    made = _work_out(engine, data, rows, config, pad)
    if distributed.is_main():
        _write(path, made, wanted)
    return made


def _work_out(engine: TrainEngine, data: StageData, rows: Sequence[int], config: DPOConfig, pad: int) -> Reference:
    total = len(rows) + len(data.held_out)
    console.say(f"reference: log-probabilities of {total:,} pairs, kept in {FILE_NAME}")
    lm = engine.module.lm
    engine.train(False)
    off = adapters_off(lm) if is_adapted(lm) else nullcontext()
    with torch.no_grad(), off, console.progress("reference", total=total, unit="pair") as bar:
        train_R2 = torch.full((len(data.train), 2), torch.nan)
        for row, sums in _of_all(engine, data.train, rows, config, pad, bar, sums_of):
            train_R2[row] = torch.as_tensor(sums)
        held_out: list[Tensor] = [torch.zeros(0)] * len(data.held_out)
        for row, tokens in _of_all(engine, data.held_out, range(len(data.held_out)), config, pad, bar, tokens_of):
            held_out[row] = torch.tensor(tokens)
    return Reference(train_R2, held_out)


def _of_all(
    engine: TrainEngine,
    pairs: Any,
    rows: Sequence[int],
    config: DPOConfig,
    pad: int,
    bar: Bar,
    what: Callable[[Tensor, PairBatch], Any],
) -> list[tuple[int, Any]]:
    """(row, `what` of the log-probabilities of its tokens) of each row, on every rank; each works out a share."""
    mine: list[tuple[int, Any]] = []
    before, done = bar.done, 0
    for part in shares(pairs, rows, config):
        batch = collate(pairs, part, pad=pad)
        values = what(token_logprobs(engine, batch), batch)
        # an empty part has a pair of padding, which `zip` leaves out
        mine += zip(part, values.tolist() if isinstance(values, Tensor) else values, strict=False)
        done += len(part) * distributed.world_size()
        bar.update(before + min(done, len(rows)))
    return [item for rank in distributed.gather_objects(mine) for item in rank]


def tokens_of(logprobs_N: Tensor, batch: PairBatch) -> list[list[float]]:
    """The counted tokens of each pair, of the chosen response and then of the rejected one."""
    parts = logprobs_N.cpu().split(batch.count_2BT.sum(dim=1).tolist())
    half = len(parts) // 2
    return [[*c.tolist(), *r.tolist()] for c, r in zip(parts[:half], parts[half:], strict=True)]


# --- the file ---------------------------------------------------------------------------------------------------------


def _made_from(data: StageData, rows: Sequence[int], config: DPOConfig) -> str:
    """What the file depends on: the encoded rows, those that are taken, the model's files and its number format."""
    folder = Path(resolve(config.model))
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors"))]
    return json.dumps(
        {
            "format": FORMAT,
            "train": data.report["train"]["fingerprint"],
            "held_out": data.report["held_out"]["fingerprint"],
            "pairs": len(rows),
            "model": [config.model, files],
            "dtype": config.dtype,
        }
    )


def _read(path: Path, wanted: str, data: StageData) -> Reference | None:
    """The file's reference; None if it was made from something else or cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("made_from") != wanted:
                return None
            train_R2, flat, lengths = (file.get_tensor(n) for n in ("train", "held_out", "held_out_lengths"))
    except (SafetensorError, OSError):
        return None
    if len(train_R2) != len(data.train) or len(lengths) != len(data.held_out):
        return None
    return Reference(train_R2, list(flat.split(lengths.tolist())))


def _write(path: Path, made: Reference, wanted: str) -> None:
    tensors = {
        "train": made.train_R2,
        "held_out": torch.cat(made.held_out),
        "held_out_lengths": torch.tensor([len(tokens) for tokens in made.held_out]),
    }
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, str(part), metadata={"made_from": wanted})
    os.replace(part, path)
