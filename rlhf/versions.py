"""The versions that a run is made with: this project's, Python's, the packages'. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import rlhf

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors")
_SOURCES = ("rlhf", "data", "step*")
SOURCE = "source"  # of `on_a_node`: digest of this project's code


def versions() -> dict[str, str]:
    """Name → version; packages that are not installed are left out."""
    found = {"rlhf-pipeline": rlhf.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def on_a_node() -> dict[str, str]:
    """`versions`, and a digest of the project's code: two checkouts of one version may differ."""
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(file for pattern in _SOURCES for file in _ROOT.glob(f"{pattern}/**/*.py")):
        digest.update(file.relative_to(_ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return {**versions(), SOURCE: digest.hexdigest()}


def version_problems(nodes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each node whose versions (`on_a_node`) are not those of the first."""
    names = list(nodes)
    found = []
    for name in names[1:]:
        ours, theirs = nodes[names[0]], nodes[name]
        differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if differing:
            said = ", ".join(_difference(key, theirs.get(key), ours.get(key)) for key in differing)
            found.append(f"{name} and {names[0]} differ: {said}; install the same on all nodes")
    return found


def _difference(key: str, theirs: str | None, ours: str | None) -> str:
    if key == SOURCE:
        return "the files of this project are not the same"
    return f"{key} {theirs or 'none'} and {ours or 'none'}"
