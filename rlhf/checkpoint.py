"""Save and resume: everything that a run needs to go on exactly, written atomically, by all ranks at once.

A checkpoint is a folder. Each rank writes the fragments of fp32 masters and optimiser state that it holds, each named
by its parameter and where in it the fragment begins, so that any number of ranks and any ZeRO stage can read them back
without a conversion. What is a pure function of the step (learning rate, order of the data, random numbers) is not
stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf import console, distributed
from rlhf.engine import TrainEngine
from rlhf.errors import TrainingError
from rlhf.files import sync_folder, write_json
from rlhf.interrupt import Interrupts

STATE_NAME = "state.json"
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


# --- one engine ------------------------------------------------------------------------------------------------------


def _write_engine(engine: TrainEngine, path: Path, extra: Extra) -> dict[str, Any]:
    """Write this rank's fragments to `path`; returns what is not a tensor."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    world, rank = distributed.world_size(), distributed.rank()
    tables = _tables(engine, extra)
    for index, f in enumerate(fragments(engine.engine)):
        if engine.zero_stage == 0 and index % world != rank:
            continue
        for key, flats in tables.items():
            flat = flats[f.flat]
            if flat is None:
                continue
            if flat.shape == masters(engine.engine)[f.flat].shape:
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


class _Reader:
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
def _read_engine(engine: TrainEngine, reader: _Reader, state: Mapping[str, Any], extra: Extra) -> None:
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
        setattr(scaler, key, value)
    _weights_from_masters(engine, reader)


def _slice(flat: Tensor, f: Fragment) -> Tensor:
    return flat.view(-1)[f.offset : f.offset + f.count]


def _factored_shape(key: str, shape: torch.Size) -> tuple[int, ...]:
    """Adafactor's state: row_var is [..., rows, 1], col_var [..., 1, columns]."""
    return (*shape[:-1], 1) if key == "row_var" else (*shape[:-2], 1, shape[-1])


def _weights_from_masters(engine: TrainEngine, reader: _Reader) -> None:
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


# --- a run's checkpoints ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its step and the stage's own state."""

    folder: Path
    step: int
    state: dict[str, Any]
    engines: dict[str, Any]

    def restore(self, engines: Mapping[str, TrainEngine], extras: Mapping[str, Extra] | None = None) -> None:
        """Put weights and optimiser state back; all ranks take part. Raises TrainingError where they do not fit."""
        for name, engine in engines.items():
            reader = _Reader(sorted(self.folder.glob(f"{name}-*.safetensors")))
            _read_engine(engine, reader, self.engines[name], (extras or {}).get(name, {}))
        distributed.barrier()


class Checkpoints:
    """The folder `checkpoints/` of a stage: `step-00000120/` and so on, the last `keep` and the best of them."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self,
        step: int,
        engines: Mapping[str, TrainEngine],
        state: Mapping[str, Any],
        *,
        extras: Mapping[str, Extra] | None = None,
        score: float | None = None,
    ) -> None:
        """Write the state after `step` steps. `score` (higher is better) decides which one is kept as the best.

        Nothing is visible before all of it is on the disk; when a rank cannot write, what was written is removed, older
        checkpoints stay, and every rank raises.
        """
        final, temporary = self.folder / f"step-{step:08}", self.folder / f".step-{step:08}.part"
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        distributed.barrier()
        rank, failure, written = distributed.rank(), None, {}
        told: dict[str, Any] = {}
        try:
            for name, engine in engines.items():
                path = temporary / f"{name}-{rank:05}.safetensors"
                told[name] = _write_engine(engine, path, (extras or {}).get(name, {}))
                written[path.name] = _digest(path, sync=True)
        except Exception as error:
            failure = error
        everyone = distributed.gather_objects((written, str(failure) if failure else None))
        problem = next((p for _, p in everyone if p), None)
        if distributed.is_main() and problem is None:
            try:
                files = {name: digest for part, _ in everyone for name, digest in part.items()}
                value = {"step": step, "score": score, "state": state, "engines": told, "files": files}
                write_json(temporary / STATE_NAME, value)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
                sync_folder(self.folder)
                self._prune()
            except OSError as error:
                failure, problem = error, str(error)
        problem = next((p for p in distributed.gather_objects(problem) if p), None)
        if problem is not None:
            if distributed.is_main():
                shutil.rmtree(temporary, ignore_errors=True)
            raise failure or TrainingError(f"checkpoint {final.name} could not be written: {problem}")

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same on every rank; a damaged one is named and skipped."""
        chosen = self._newest_sound() if distributed.is_main() else None
        name = distributed.gather_objects(chosen)[0]
        if name is None:
            return None
        folder = self.folder / name
        value = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        return Checkpoint(folder, int(value["step"]), value["state"], value["engines"])

    def _newest_sound(self) -> str | None:
        for folder in self._folders():
            problem = _damage(folder)
            if problem is None:
                return folder.name
            console.warn(f"checkpoint {folder} is damaged ({problem}) and is skipped")
        return None

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _prune(self) -> None:
        scores = {f: _score(f) for f in self._folders()}
        known = {f: s for f, s in scores.items() if s is not None}
        best = max(known, key=lambda f: known[f], default=None)
        for folder in self._folders()[self.keep :]:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)
        for part in self.folder.glob(".step-*.part"):
            shutil.rmtree(part, ignore_errors=True)


def save_when_due(
    checkpoints: Checkpoints, interrupts: Interrupts, *, step: int, total: int, every: int | None, **what: Any
) -> None:
    """After `step` of `total`: a checkpoint when one is due, after the last step, and when a signal has arrived, which
    then ends the process. `what` goes to `Checkpoints.save`."""
    signal = interrupts.agreed()
    if signal or step == total or (every and step % every == 0):
        checkpoints.save(step, **what)
    if signal:
        console.say(f"interrupted: a checkpoint of step {step} is written, the same command goes on from there")
        interrupts.end(signal)


def _score(folder: Path) -> float | None:
    try:
        return json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError):
        return None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))["files"]
        for name, digest in files.items():
            if _digest(folder / name) != digest:
                return f"{name} has other content than was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE_NAME} cannot be read"
    return None


def _digest(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(1 << 22):
        yield block
