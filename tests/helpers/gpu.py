"""Ranks and programs on a GPU: a real one where the tests run with DS_ACCELERATOR=cuda, else the pretended one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.pipeline.launch import ROOT
from tests.helpers.ranks import run_ranks
from tests.pretend import build, card


def is_real() -> bool:
    """Whether the tests run on a real GPU."""
    return os.environ.get("DS_ACCELERATOR") == "cuda" and build.LIBRARY not in os.environ


def environment(which: card.Card = card.A100) -> dict[str, str]:
    """Environment variables of a process on a GPU. Skips the test where there can be none."""
    if is_real():
        return {"DS_ACCELERATOR": "cuda"}
    if why := build.missing():
        pytest.skip(f"no pretended GPU: {why}")
    library = build.library(Path(os.environ["TORCH_EXTENSIONS_DIR"]))  # gone when the tests end
    # nobody has chosen a device where the driver is too old
    chosen = "" if which is card.TOO_NEW else "cuda"
    return {
        build.LIBRARY: str(library), card.CARD: which.name, "DS_ACCELERATOR": chosen, "CUDA_VISIBLE_DEVICES": "0"
    }  # fmt: skip


def run_on_gpu(
    function: Callable[..., Any], *arguments: Any, world_size: int = 1, which: card.Card | None = None
) -> list[Any]:
    """`function(*arguments)` on ranks with a GPU each; `which` asks for a pretended one."""
    if is_real():
        import torch

        if which is not None or torch.cuda.device_count() < world_size:
            pytest.skip(f"needs {world_size} GPUs" if which is None else f"needs a {which.name}")
    return run_ranks(function, *arguments, world_size=world_size, environment=environment(which or card.A100))


def run_program(*words: str, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in the project's folder on a GPU, with the processes that it starts."""
    path = os.pathsep.join([str(build.HERE / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, **environment(), "PYTHONPATH": path, **(more or {})}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=300
    )
