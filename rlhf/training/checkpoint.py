"""Save and resume: everything that a run needs to go on exactly as if it had not stopped. All ranks write at once.

A checkpoint is a folder. It holds one file of fragments for each engine and rank (`engine_state.py`), and `state.json`,
which is written last, with the stage's own state and the digests of all files. The folder gets its name when all of it
is on the disk. What is a pure function of the step is not stored: learning rate, order of the data, random numbers.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf import console, process
from rlhf.errors import EXIT_USER, DataError, TrainingError, UserError, error_lines
from rlhf.files import appears, join_folder, open_to_others, sync_folder, write_json
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from rlhf.training.engine_state import Extra, Reader, read_engine, write_engine
from rlhf.training.fragment_file import new_digest
from rlhf.training.interrupt import Interrupts

STATE_NAME = "state.json"
# The layout of a checkpoint. Raise it with every change that an older version could not read, and say in docs/resume.md
# which formats this version reads. Checkpoints without a number, of versions before 0.2, are of format 1.
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, its step, the stage's own state, and by engine what is not a tensor."""

    folder: Path
    step: int
    state: dict[str, Any]
    engines: dict[str, Any]
    files: tuple[str, ...]  # a listing of the folder may be older, on another machine than the one that wrote it

    def restore(self, engines: Mapping[str, TrainEngine], extras: Mapping[str, Extra] | None = None) -> None:
        """Put weights and optimiser state back into `engines`, and the `extras` of each. All ranks take part.

        Raises TrainingError for a checkpoint of another model.
        """
        for name, engine in engines.items():
            files = fnmatch.filter(self.files, f"{name}-*.safetensors")
            reader = Reader([self.folder / file for file in sorted(files)])
            read_engine(engine, reader, self.engines[name], (extras or {}).get(name, {}))
        distributed.barrier()


class Checkpoints:
    """The folder `checkpoints/` of a stage: `step-00000120/` and so on. The last `keep` stay, and the best.

    `sources` are fingerprints of the data that the run reads; a run on other data cannot be resumed.
    """

    def __init__(self, folder: Path, *, keep: int, sources: Sequence[str] = ()) -> None:
        self.folder, self.keep, self.sources = folder, keep, list(sources)

    def save(
        self,
        step: int,
        engines: Mapping[str, TrainEngine],
        state: Mapping[str, Any],
        *,
        extras: Mapping[str, Extra] | None = None,
        score: float | None = None,
    ) -> None:
        """Write the state after `step` steps. The checkpoint with the highest `score` is kept as the best.

        Nothing is visible before all of it is on the disk. When a rank cannot write, what was written is removed, older
        checkpoints stay, and every rank raises: UserError for what the user can correct (a full disk), TrainingError
        otherwise.
        """
        final, temporary = self.folder / f"step-{step:08}", self.folder / f".step-{step:08}.part"
        rank, world = distributed.rank(), distributed.world_size()
        self._agree(final, temporary, lambda: self._begin(temporary) if rank == 0 else None)
        told: dict[str, Any] = {}
        digests: dict[str, str] = {}

        def write() -> None:
            join_folder(temporary)
            for name, engine in engines.items():
                path = temporary / f"{name}-{rank:05}.safetensors"
                told[name], digests[path.name] = write_engine(engine, path, (extras or {}).get(name, {}))

        self._agree(final, temporary, write)
        files = {name: digest for part in distributed.gather_objects(digests) for name, digest in part.items()}
        finite = score if score is not None and math.isfinite(score) else None
        value = {"format": FORMAT, "step": step, "ranks": world, "score": finite, "state": state, "engines": told}
        value |= {"sources": self.sources, "files": files}
        self._agree(final, temporary, lambda: self._publish(final, temporary, value) if rank == 0 else None)

    def _agree(self, final: Path, temporary: Path, action: Callable[[], None]) -> None:
        """Do `action` on this rank. When it fails on any rank, remove what was written and raise the same on all."""
        failure, said = None, None
        try:
            action()
        except Exception as error:
            failure, said = error, error_lines(error)
        lines, code = next((s for s in distributed.gather_objects(said) if s), ([], 0))
        if not lines:
            return
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        distributed.barrier()
        text = f"checkpoint {final.name} could not be written: {lines[0]}"
        raise (UserError(text) if code == EXIT_USER else TrainingError(text)) from failure

    @staticmethod
    def _begin(temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def _publish(self, final: Path, temporary: Path, value: dict[str, Any]) -> None:
        """Give a complete checkpoint its name, and remove what it makes superfluous."""
        write_json(temporary / STATE_NAME, {**value, "digest": _digest_of(value)})
        open_to_others(temporary)
        _discard(final)
        os.replace(temporary, final)
        sync_folder(self.folder)
        self._prune(newest=final)

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same on every rank; None without one. Damaged ones get a warning and are
        skipped. Raises DataError when the run was begun on other data."""
        folder = self._newest_sound()
        if folder is None:
            return None
        value = _read_state(folder)
        if value.get("format", 1) > FORMAT:
            raise DataError(
                f"{folder} has checkpoint format {value['format']}, and this version reads formats up to {FORMAT}; "
                "continue with the version that wrote it, or start again with --overwrite"
            )
        if value.get("sources", self.sources) != self.sources:
            raise DataError(
                f"{folder} was written by a run whose data files held something else; put the old ones back to go on, "
                "or start again with --overwrite"
            )
        return Checkpoint(folder, int(value["step"]), value["state"], value["engines"], tuple(value["files"]))

    def _newest_sound(self) -> Path | None:
        """All ranks call it: each reads a part of the files, because a large model's take minutes to read."""
        rank, ranks = distributed.rank(), distributed.world_size()
        names = distributed.gather_objects([f.name for f in self._folders()])[0]
        for folder in (self.folder / name for name in names):
            problem = next(filter(None, distributed.gather_objects(_damage(folder, part=rank, of=ranks))), None)
            if problem is None:
                return folder
            console.warn(f"checkpoint {folder} is damaged ({problem}) and is skipped")
        return None

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _prune(self, newest: Path) -> None:
        for folder in self._folders():
            if folder.name > newest.name:  # damaged ones: this run was resumed from before them
                _discard(folder)
        scores = {f: _score(f) for f in self._folders()}
        known = {f: s for f, s in scores.items() if s is not None}
        best = max(known, key=lambda f: known[f], default=None)
        for folder in self._folders()[self.keep :]:
            if folder != best:
                _discard(folder)
        for part in self.folder.glob(".step-*"):
            shutil.rmtree(part, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove a checkpoint. It loses its name first, so that a half removed one is never taken for a whole one."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def save_when_due(
    checkpoints: Checkpoints, interrupts: Interrupts, *, step: int, total: int, every: int | None, **what: Any
) -> None:
    """Call it after each step. It writes a checkpoint every `every` steps, after the last step (`total`), and when a
    signal has arrived; after a signal it ends the process. `what` goes to `Checkpoints.save`."""
    signal = interrupts.agreed()
    if signal or step == total or (every and step % every == 0):
        checkpoints.save(step, **what)
    if signal:
        console.say(f"interrupted: a checkpoint of step {step} is written, the same command goes on from there")
        interrupts.end(signal)


def _score(folder: Path) -> float | None:
    try:
        return _read_state(folder)["score"]
    except (OSError, ValueError):
        return None


def _damage(folder: Path, *, part: int, of: int) -> str | None:
    """What is wrong with every `of`-th of a checkpoint's files, or None."""
    try:
        _wait_for(folder / STATE_NAME)
        for name, digest in list(_read_state(folder)["files"].items())[part::of]:
            _wait_for(folder / name)
            if _digest(folder / name) != digest:
                return f"{name} has other content than was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ValueError:
        return f"{STATE_NAME} has other content than was written"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def _wait_for(path: Path) -> None:
    """Wait for a file that another machine wrote to become visible on this one."""
    if process.node_count() > 1:
        appears(path)


def _read_state(folder: Path) -> dict[str, Any]:
    """The content of `state.json`; raises ValueError when it is not as it was written."""
    value = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    if not isinstance(value, dict) or value.pop("digest", None) != _digest_of(value):
        raise ValueError
    return value


def _digest_of(value: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    digest = new_digest()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
