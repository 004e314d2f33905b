"""Models of the hub are downloaded before ranks load them, with a line that says how much: a large one takes an hour.

Imports no torch.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import socket
from pathlib import Path

from rlhf import process
from rlhf.console import say
from rlhf.errors import ModelError
from rlhf.models.names import resolve

_SMALL = ("*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken")


def fetch(name: str) -> None:
    """Download what loading a model of the hub reads, unless it is in the cache or the hub is not to be asked.

    Raises ModelError when the download fails.
    """
    resolved = resolve(name)
    if not name or Path(resolved).is_dir():
        return
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return
    # otherwise a thread of transformers asks the hub to convert weights, once in each rank
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        listed = HfApi().model_info(resolved, files_metadata=True, timeout=5).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in listed}
        wanted = _wanted(list(sizes))
        missing = [file for file in wanted if not _is_cached(resolved, file)]
        if not missing:
            return
        size = sum(sizes[file] for file in missing) / 1e9
        _say(f"{socket.gethostname()} downloads {resolved}, {size:.1f} GB")
        snapshot_download(resolved, allow_patterns=wanted)
    except Exception as error:  # proxies, DNS: the client has a class for each
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if _is_cached(resolved, "config.json"):
            return  # what is missing, loading will say
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{resolved} could not be downloaded on {socket.gethostname()}: {text}") from error


def _wanted(files: list[str]) -> list[str]:
    """The files of a repository that loading reads: those of the first kind of weights that it has, and small ones."""
    top = [file for file in files if "/" not in file]
    kinds = ("model*.safetensors", "pytorch_model*.bin")
    weights = next((found for kind in kinds if (found := fnmatch.filter(top, kind))), [])
    return weights + [file for file in top if any(fnmatch.fnmatch(file, kind) for kind in _SMALL)]


def _is_cached(name: str, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file), str)


def _say(text: str) -> None:
    if process.is_main():
        say(text)
    else:  # another node's: for the log
        print(text, flush=True)
