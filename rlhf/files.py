"""Files that are complete or absent, and folders that belong to one run.

Everything is written under a temporary name, synced and renamed. A run's folder holds a lock file from the start. The
file shows that a run may write and empty the folder, and it keeps a second run out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from rlhf.errors import ConfigError

LOCK_NAME = ".rlhf.lock"
VISIBLE_SECONDS = 60.0  # for what one machine has written to become visible on the others


def is_text(value: str) -> bool:
    """Whether a string holds characters alone, so that it can be written as UTF-8. JSON may spell half of a surrogate
    pair (`"\\ud83d"`), and Python so holds the bytes of a file's name that are not UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def expand_user(path: Path) -> Path:
    """The path with a leading `~` replaced by the home. Raises ValueError for the home of a user that there is not."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path.parts[0]} is the home of no user of this machine") from None


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; a reader sees the old file or the new one, never half of it.

    What UTF-8 cannot hold, such as a byte of a file's name that is not text, is written as `\\udce9`: in JSON that is
    the same character.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, file = _new_file(path)
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _new_file(path: Path) -> tuple[Path, IO[str]]:
    """A new file beside `path`, open for writing. Its mode follows the umask (or the folder's default ACL), which that
    of `tempfile` does not."""
    for _ in range(100):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with contextlib.suppress(FileExistsError):
            return temporary, temporary.open("x", encoding="utf-8", errors="backslashreplace")
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


@contextlib.contextmanager
def new_folder(path: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path`, on an error it is removed.

    With `replaces` False a `path` that somebody else has made meanwhile stays, and the temporary folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        open_to_others(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists() and replaces:
            shutil.rmtree(path)
        try:
            os.replace(temporary, path)
        except OSError:
            if replaces or not path.is_dir():
                raise
            shutil.rmtree(temporary, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def open_to_others(folder: Path) -> None:
    """Let whoever may read `folder` also read what is in it. Libraries write some files and folders for their owner
    alone (safetensors its weights), whatever the umask says; on a cluster nobody else could load such a model."""
    granted = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        mode, more = stat.S_IMODE(path.stat().st_mode), granted if path.is_dir() else granted & 0o666
        if mode | more != mode:
            path.chmod(mode | more)


def sync_folder(path: Path) -> None:
    """Make a rename in `path` survive a power cut, if the file system supports it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(file: IO[Any], *, wait: float = 0.0) -> bool:
    """Hold an open, writable file against other processes until it is closed; False when another still holds it after
    `wait` seconds (`math.inf` waits as long as it takes). Raises OSError on a file system without locks.

    A POSIX record lock goes with this process, however it ends. flock(2) would be inherited by forked workers, which
    may outlive a killed parent for a while and would keep the next run out.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


# --- a run's folder ---------------------------------------------------------------------------------------------------

_held: dict[Path, IO[str]] = {}  # kept open: closing a lock file releases the lock


def folder_problems(folder: Path) -> list[str]:
    """Why `folder` cannot be the folder of a run; nothing is written."""
    if not is_text(str(folder)):
        return [f"{folder} is not UTF-8 text, which model files need of their names; choose another output folder"]
    if not folder.exists():
        parent = next(p for p in folder.absolute().parents if p.exists())
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            return []
        return [
            f"{folder} cannot be created: {parent} is not a folder that you may write in; choose another output folder"
        ]
    if not folder.is_dir():
        return [f"{folder} is a file; choose a folder for the output"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{folder} is not a folder that you may write in; choose another output folder"]
    if any(folder.iterdir()) and not (folder / LOCK_NAME).exists():
        return [f"{folder} is not empty and was not written by a run; choose another output folder"]
    return []


def file_problems(path: Path, *, flag: str) -> list[str]:
    """Why a file cannot be written at `path`; nothing is written."""
    parent = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir():
        return [f"{flag} {path} is a folder; name a file"]
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return [f"{flag} {path} cannot be written: {parent} is not a folder that you may write in; name another file"]
    return []


def join_folder(path: Path, *, seconds: float = VISIBLE_SECONDS) -> None:
    """Make a folder that another machine may just have made. A network file system may remember that it was not there,
    and refuse to make it because it is; after that it asks again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            return
        except (FileExistsError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def appears(path: Path, *, seconds: float = VISIBLE_SECONDS) -> bool:
    """Whether a path that another machine makes becomes visible within `seconds`.

    A network file system remembers for a minute or more that a name was not there; listing the folder asks again.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            os.listdir(path.parent)
        if path.exists():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def claim_folder(folder: Path) -> None:
    """Make `folder` the folder of a run. Raises ConfigError when it cannot be one, or holds what no run wrote."""
    problems = folder_problems(folder)
    if problems:
        raise ConfigError(*problems)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK_NAME).touch()


def lock_folder(folder: Path, *, wait: float = 0.0) -> None:
    """Lock a claimed folder until this process ends. Raises ConfigError when another process still has the lock after
    `wait` seconds.

    What a killed run was writing there is removed. On a file system without locks the folder is used without one.
    """
    if folder.resolve() in _held:
        return
    file = (folder / LOCK_NAME).open("r+", encoding="utf-8")
    alone = True
    try:
        ours = lock(file, wait=wait)
    except OSError:
        ours, alone = True, False
    if not ours:
        owner = file.read().strip() or "another process"
        file.close()
        raise ConfigError(f"{folder} is in use by {owner}; wait for it, stop it, or choose another output folder")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    _held[folder.resolve()] = file
    if alone:
        remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run was writing in its folder, but not in folders with a lock of their own, such as those of
    stages."""
    for entry in folder.iterdir():
        is_folder = entry.is_dir() and not entry.is_symlink()
        if entry.name.startswith(".") and entry.name.endswith(".part"):
            shutil.rmtree(entry) if is_folder else entry.unlink()
        elif is_folder and not (entry / LOCK_NAME).exists():
            remove_unfinished(entry)


def release_folder(folder: Path) -> None:
    """Release a lock before the process ends."""
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def empty_folder(folder: Path) -> None:
    """Remove everything from a claimed folder except its lock."""
    assert (folder / LOCK_NAME).exists(), f"{folder} is not a run's"
    for entry in folder.iterdir():
        if entry.name == LOCK_NAME:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
