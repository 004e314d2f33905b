"""What an engine holds besides its frozen weights, to disk and back: fp32 masters, the optimiser's state, counts.

Each rank writes the fragments that it holds. A fragment is named by its parameter and by the place in the parameter
where it begins. So any number of ranks and any ZeRO stage can read all of them back without a conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import TrainingError
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from rlhf.training.fragment_file import write_tensors
from rlhf.training.zero_internals import Fragment, own_part

MASTER = "master"
# By name, further tensors in the layout of `TrainEngine.masters()` that are saved beside them: the moving average.
Extra = Mapping[str, Sequence[Tensor]]


def _tables(engine: TrainEngine, extra: Extra) -> dict[str, list[Tensor | None]]:
    """By name, tensors in the layout of the masters: masters, optimiser state (once there is some), extras."""
    flats, optimizer = engine.masters(), engine.torch_optimizer()
    states = [optimizer.state.get(flat, {}) for flat in flats]
    keys = sorted({k for state in states for k, v in state.items() if torch.is_tensor(v) and v.dim() > 0})
    tables: dict[str, list[Tensor | None]] = {MASTER: list(flats), **{name: list(t) for name, t in extra.items()}}
    return tables | {f"optimizer.{key}": [state.get(key) for state in states] for key in keys}


def write_engine(engine: TrainEngine, path: Path, extra: Extra) -> tuple[dict[str, Any], str]:
    """Write this rank's fragments to `path`: returns what is not a tensor, which is the same on every rank, and the
    file's digest. Only one fragment at a time is in CPU memory beside the engine."""
    pieces: dict[str, Tensor] = {}
    world, rank = distributed.world_size(), distributed.rank()
    tables, masters = _tables(engine, extra), engine.masters()
    for index, f in enumerate(engine.fragments()):
        if engine.zero_stage == 0 and index % world != rank:
            continue
        for key, flats in tables.items():
            flat = flats[f.flat]
            if flat is None:
                continue
            if flat.shape == masters[f.flat].shape:
                piece = flat.detach().reshape(-1)[f.offset : f.offset + f.count]
            else:  # factored state at ZeRO-0 has a shape of its own
                piece = flat.detach().reshape(-1)
            pieces[f"{f.name}|{key}|{f.start}"] = piece
    digest = write_tensors(path, pieces)
    steps = [float(s["step"]) for s in engine.torch_optimizer().state.values() if "step" in s]
    return {**engine.counts(), "optimizer_step": max(steps, default=0.0)}, digest


class Reader:
    """The fragments of one engine in all ranks' files, read range by range.

    A *table* is one kind of value that each parameter has: "master", "optimizer.exp_avg", or the name of an extra.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import safe_open

        self._files = [safe_open(file, framework="pt") for file in files]
        self._index: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        for file in self._files:
            for key in file.keys():  # noqa: SIM118 - not a dict
                name, table, start = key.split("|")
                count = file.get_slice(key).get_shape()[0]
                self._index.setdefault((name, table), []).append((int(start), count, file, key))

    def tables(self) -> set[str]:
        """The tables that the files hold."""
        return {table for _, table in self._index}

    def has(self, name: str, table: str) -> bool:
        """Whether the files hold anything of this parameter's table."""
        return (name, table) in self._index

    def whole(self, name: str, table: str) -> Tensor:
        """All elements of a parameter's table, flat."""
        pieces = sorted(self._index[name, table], key=lambda piece: piece[0])
        return torch.cat([file.get_tensor(key) for _, _, file, key in pieces])

    def read(self, name: str, table: str, start: int, count: int) -> Tensor:
        """Elements `start` to `start + count` of a parameter's table in fp32, from whichever files hold them.

        Raises TrainingError where a part of them is missing.
        """
        out, got = torch.empty(count), 0
        for first, length, file, key in self._index.get((name, table), []):
            low, high = max(first, start), min(first + length, start + count)
            if low < high:
                out[low - start : high - start] = file.get_slice(key)[low - first : high - first]
                got += high - low
        if got != count:
            raise TrainingError(f"the checkpoint lacks a part of {name} ({table}); it is of another model")
        return out


@torch.no_grad()
def read_engine(engine: TrainEngine, reader: Reader, state: Mapping[str, Any], extra: Extra) -> None:
    """Put back what `write_engine` has written, on whatever ranks and ZeRO stage; `extra` is filled in place.

    Raises TrainingError where the files lack a part of what this engine holds.
    """
    engine.set_counts(state)
    masters, optimizer = engine.masters(), engine.torch_optimizer()
    keys = [t.removeprefix("optimizer.") for t in reader.tables() if t.startswith("optimizer.")]
    for f in engine.fragments():
        flat = masters[f.flat]
        _slice(flat, f).copy_(reader.read(f.name, MASTER, f.start, f.count))
        for table, tensors in extra.items():
            _slice(tensors[f.flat], f).copy_(reader.read(f.name, table, f.start, f.count))
        for key in keys:
            if not reader.has(f.name, f"optimizer.{key}"):
                continue
            values = optimizer.state[flat]
            values.setdefault("step", _step_count(optimizer, flat, float(state["optimizer_step"])))
            if engine.zero_stage == 0 and len(whole := reader.whole(f.name, f"optimizer.{key}")) != flat.numel():
                values[key] = whole.reshape(_factored_shape(key, flat.shape)).to(flat.device)
                continue
            if key not in values:
                values[key] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
            _slice(values[key], f).copy_(reader.read(f.name, f"optimizer.{key}", f.start, f.count))
    for values in optimizer.state.values():
        if "step" in values:
            values["step"].fill_(float(state["optimizer_step"]))
    _weights_from_masters(engine, reader)


def _step_count(optimizer: torch.optim.Optimizer, flat: Tensor, steps: float) -> Tensor:
    """The optimiser's count of steps for one tensor. A fused optimiser reads it on the tensor's device, any other on
    the CPU."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(steps, device=flat.device if fused else "cpu")


def _slice(flat: Tensor, f: Fragment) -> Tensor:
    return flat.view(-1)[f.offset : f.offset + f.count]


def _factored_shape(key: str, shape: torch.Size) -> tuple[int, ...]:
    """Adafactor's state: row_var is [..., rows, 1], col_var [..., 1, columns]."""
    return (*shape[:-1], 1) if key == "row_var" else (*shape[:-2], 1, shape[-1])


def _weights_from_masters(engine: TrainEngine, reader: Reader) -> None:
    """Make the weights that the module computes with from the masters, as the optimiser's step would leave them."""
    if engine.zero_stage == 0:
        return  # they are the masters
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_stage == 3:
            held, start = own_part(parameter, rank=distributed.rank())
            if held.numel():
                held.copy_(reader.read(name, MASTER, start, held.numel()))
        else:
            parameter.copy_(reader.read(name, MASTER, 0, parameter.numel()).reshape(parameter.shape))
