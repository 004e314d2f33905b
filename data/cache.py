"""Folders that are built once and shared: by the ranks of a run, its stages, and later runs.

A folder's name is the hash of all that it depends on: its inputs, and the FORMAT number of the module that builds it,
which stands for the code (see `key_of`). It is built under a lock in a temporary folder and renamed when it is whole,
so a folder that exists is complete; a builder that was killed leaves only a temporary folder behind, which the next one
removes. The lock dies with its holder. No process group is needed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.console import say
from rlhf.errors import DataError
from rlhf.files import lock, new_folder


def default_folder() -> Path:
    """$RLHF_CACHE, else the user's cache folder."""
    if given := os.environ.get("RLHF_CACHE"):
        return Path(given).expanduser() / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlhf" / "data"


def key_of(values: Any, *, format: int) -> str:
    """A name for what is built from `values` (JSON), as code of this `format` builds it.

    Each cache has a FORMAT of its own, which is raised when its code would build something else from the same values.
    A hash of the code itself would rebuild everything after a changed comment. A test checks that each FORMAT still
    has its content.
    """
    text = json.dumps({"format": format, "values": values}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def build_once(root: Path, kind: str, key: str, build: Callable[[Path], None], *, doing: str) -> Path:
    """The folder `root/kind-key`, built by `build(folder)` unless it is there. Other processes wait meanwhile."""
    folder = root / f"{kind}-{key}"
    if folder.exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data_cache_dir {root} cannot be created: {error.strerror}") from error
    with _locked(root / f"{kind}-{key}.lock", doing=doing) as alone:
        if not folder.exists():
            for left in root.glob(f".{folder.name}.*.part") if alone else ():
                shutil.rmtree(left, ignore_errors=True)
            with new_folder(folder, replaces=alone) as temporary:
                build(temporary)
    return folder


@contextmanager
def _locked(path: Path, *, doing: str) -> Iterator[bool]:
    """Hold the lock of a folder while it is built; print a line while another process has the lock.

    Yields False on a file system without locks (Lustre, often). Then several processes may build the same folder, each
    in a temporary one of its own, and the first that is ready stays.
    """
    with path.open("a") as file:
        try:
            alone = lock(file)
        except OSError:
            yield False
            return
        if not alone:
            say(f"waiting for another process that is {doing}")
            lock(file, wait=math.inf)
        yield True
