"""What an engine holds besides its frozen weights: fp32 masters, the optimiser's state, counts; to disk and back.

Each rank writes the fragments that it holds, each named by its parameter and where in it the fragment begins, so that
any number of ranks and any ZeRO stage can read them back without a conversion. Where a fragment lies is read from
attributes that DeepSpeed does not promise (`grad_position`, `_hp_mapping`, the flat groups); tests hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import TrainingError
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine

MASTER = "master"
# Tensors in the layout of the masters (the moving average), saved beside them under a name.
Extra = Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's elements, `start` to `start + count`, at `offset` of this rank's flat tensor `flat`."""

    name: str
    start: int
    count: int
    flat: int
    offset: int


# --- what a rank holds -----------------------------------------------------------------------------------------------


def masters(engine: Any) -> list[Tensor]:
    """This rank's part of the fp32 masters of all trained weights, as the optimiser holds them: flat tensors under
    ZeRO 1 to 3, the parameters themselves at ZeRO-0. `engine` is DeepSpeed's."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [p for group in optimizer.param_groups for p in group["params"]]


def fragments(engine: Any) -> list[Fragment]:
    """Where the elements of each trained parameter lie in `masters(engine)`; the same parameter on another rank has
    other elements. At ZeRO-0, where every rank holds all, the ranks share the parameters out."""
    optimizer = engine.optimizer
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    found = []
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for name, parameter in trained:
            flat, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = count * distributed.rank()
            inside = min(count, parameter.ds_numel - start)  # the last partitions are padded
            if inside > 0:
                found.append(Fragment(name, start, inside, int(flat), int(offset)))
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        for name, parameter in trained:
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:  # None: no element of it is on this rank
                lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
                found.append(Fragment(name, lp.start, lp.numel, mapping.param_group_index, hp.start))
    else:
        index = {id(p): i for i, p in enumerate(masters(engine))}
        found = [Fragment(name, 0, p.numel(), index[id(p)], 0) for name, p in trained]
    return found


def _tables(engine: TrainEngine, extra: Extra) -> dict[str, list[Tensor | None]]:
    """By name, tensors in the layout of the masters: masters, optimiser state (once there is some), extras."""
    flats = masters(engine.engine)
    states = [_inner(engine).state.get(flat, {}) for flat in flats]
    keys = sorted({k for state in states for k, v in state.items() if torch.is_tensor(v) and v.dim() > 0})
    tables: dict[str, list[Tensor | None]] = {MASTER: list(flats), **{name: list(t) for name, t in extra.items()}}
    return tables | {f"optimizer.{key}": [state.get(key) for state in states] for key in keys}


def _inner(engine: TrainEngine) -> Any:
    """The torch optimiser inside DeepSpeed's."""
    optimizer = engine.engine.optimizer
    return getattr(optimizer, "optimizer", optimizer)


# --- to disk and back -------------------------------------------------------------------------------------------------


def write_engine(engine: TrainEngine, path: Path, extra: Extra) -> dict[str, Any]:
    """Write this rank's fragments to `path`; what is not a tensor is returned and is the same on every rank."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    world, rank = distributed.world_size(), distributed.rank()
    tables, flat_masters = _tables(engine, extra), masters(engine.engine)
    for index, f in enumerate(fragments(engine.engine)):
        if engine.zero_stage == 0 and index % world != rank:
            continue
        for key, flats in tables.items():
            flat = flats[f.flat]
            if flat is None:
                continue
            if flat.shape == flat_masters[f.flat].shape:
                piece = flat.detach().reshape(-1)[f.offset : f.offset + f.count]
            else:  # factored state at ZeRO-0 has a shape of its own
                piece = flat.detach().reshape(-1)
            tensors[f"{f.name}|{key}|{f.start}"] = piece.contiguous().cpu()
    save_file(tensors, path)
    steps = [float(s["step"]) for s in _inner(engine).state.values() if "step" in s]
    scaler = getattr(engine.engine.optimizer, "loss_scaler", None)
    numbers = {k: v for k, v in vars(scaler).items() if isinstance(v, (int, float))} if scaler is not None else {}
    return {
        "steps_done": engine.steps_done,
        "steps_skipped": engine.steps_skipped,
        "optimizer_step": max(steps, default=0.0),
        "loss_scaler": numbers,
    }


class Reader:
    """The fragments of one engine in all ranks' files, read range by range."""

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
        return {table for _, table in self._index}

    def has(self, name: str, table: str) -> bool:
        return (name, table) in self._index

    def whole(self, name: str, table: str) -> Tensor:
        pieces = sorted(self._index[name, table], key=lambda piece: piece[0])
        return torch.cat([file.get_tensor(key) for _, _, file, key in pieces])

    def read(self, name: str, table: str, start: int, count: int) -> Tensor:
        """Elements `start` to `start + count` of a parameter's table, put together from whatever files hold them."""
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
    engine.steps_done, engine.steps_skipped = int(state["steps_done"]), int(state["steps_skipped"])
    flats, optimizer = masters(engine.engine), _inner(engine)
    keys = [t.removeprefix("optimizer.") for t in reader.tables() if t.startswith("optimizer.")]
    held = fragments(engine.engine)
    for f in held:
        flat = flats[f.flat]
        _slice(flat, f).copy_(reader.read(f.name, MASTER, f.start, f.count))
        for table, tensors in extra.items():
            _slice(tensors[f.flat], f).copy_(reader.read(f.name, table, f.start, f.count))
        for key in keys:
            if not reader.has(f.name, f"optimizer.{key}"):
                continue
            values = optimizer.state[flat]
            values.setdefault("step", torch.tensor(float(state["optimizer_step"])))
            if engine.zero_stage == 0 and len(whole := reader.whole(f.name, f"optimizer.{key}")) != flat.numel():
                values[key] = whole.reshape(_factored_shape(key, flat.shape)).to(flat.device)
                continue
            if key not in values:
                values[key] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
            _slice(values[key], f).copy_(reader.read(f.name, f"optimizer.{key}", f.start, f.count))
    for values in optimizer.state.values():
        if "step" in values:
            values["step"].fill_(float(state["optimizer_step"]))
    scaler = getattr(engine.engine.optimizer, "loss_scaler", None)
    for key, value in state["loss_scaler"].items():
        if hasattr(scaler, key):  # another ZeRO stage may have another scaler, or none
            setattr(scaler, key, value)
    _weights_from_masters(engine, reader)


def _slice(flat: Tensor, f: Fragment) -> Tensor:
    return flat.view(-1)[f.offset : f.offset + f.count]


def _factored_shape(key: str, shape: torch.Size) -> tuple[int, ...]:
    """Adafactor's state: row_var is [..., rows, 1], col_var [..., 1, columns]."""
    return (*shape[:-1], 1) if key == "row_var" else (*shape[:-2], 1, shape[-1])


def _weights_from_masters(engine: TrainEngine, reader: Reader) -> None:
    """The weights that the module computes with, from the masters, as the optimiser's step would leave them."""
    if engine.zero_stage == 0:
        return  # they are the masters
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_stage == 3:
            held: Any = parameter.ds_tensor
            start = held.numel() * distributed.rank()
            count = min(held.numel(), parameter.ds_numel - start)
            if count > 0:
                held[:count].copy_(reader.read(name, MASTER, start, count))
        else:
            parameter.copy_(reader.read(name, MASTER, 0, parameter.numel()).reshape(parameter.shape))
