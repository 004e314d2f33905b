"""What every test finds: an offline CPU with one thread, caches that go when the tests end, and ranks on demand."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

CACHE = Path(tempfile.mkdtemp(prefix="rlhf-tests-"))

# Before anything imports torch. Tests run on the CPU; with DS_ACCELERATOR=cuda on a GPU, with PRETEND_GPU=1 on a
# pretended one, for which `pytest -m gpu` chooses the tests.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
if os.environ["DS_ACCELERATOR"] == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if sys.platform == "linux":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    HF_HOME=str(CACHE / "huggingface"),
    RLHF_CACHE=str(CACHE / "rlhf"),
    XDG_CACHE_HOME=str(CACHE / "xdg"),
    TORCHINDUCTOR_CACHE_DIR=str(CACHE / "inductor"),
    TORCH_EXTENSIONS_DIR=str(CACHE / "extensions"),
    TRITON_CACHE_DIR=str(CACHE / "triton"),
)
if os.environ.get("PRETEND_GPU") == "1":
    from tests.pretend import build, card

    if _why := build.missing():
        raise pytest.UsageError(f"PRETEND_GPU=1: {_why}")
    os.environ[build.LIBRARY] = str(build.library(CACHE))
    card.install_as_told()
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RLHF_EVENTS")
for _name in ("COLUMNS", *_OF_LAUNCHERS):
    os.environ.pop(_name, None)

# The same examples on every run, no time limit, no database in the working directory.
hypothesis_settings.register_profile("tests", database=None, deadline=None, derandomize=True)
hypothesis_settings.load_profile("tests")


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that takes `run_ranks` is marked `ranks`, one that takes `run_on_gpu` also `gpu`; the other marks are
    written where they belong."""
    for item in items:
        taken = {"run_ranks", "run_on_gpu"} & set(getattr(item, "fixturenames", ()))
        if taken:
            item.add_marker("ranks")
        if "run_on_gpu" in taken:
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """`run_ranks(function, *arguments, world_size=2, timeout=120)` → each rank's result; see tests/helpers/ranks.py."""
    from tests.helpers.ranks import run_ranks

    return run_ranks


@pytest.fixture(scope="session")
def run_on_gpu() -> Callable[..., list[Any]]:
    """As `run_ranks`, each rank on a GPU of its own: a real one with DS_ACCELERATOR=cuda, else a pretended one."""
    from tests.helpers import gpu

    return gpu.run_on_gpu


@pytest.fixture(scope="session")
def one_rank() -> None:
    """This process as rank 0 of 1, for engines and stages that run in-process."""
    import torch

    from rlhf.training import distributed

    before = dict(os.environ)
    distributed.init(0)
    torch.set_num_threads(1)
    # what a launcher would set must not reach the processes that other tests start
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in before:
            os.environ.pop(name, None)
