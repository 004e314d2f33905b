"""Compiles the pretended GPU with the C++ compiler, once per session of tests. Imports no torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
# Environment variable of a process on the pretended GPU: where the library is.
LIBRARY = "PRETENDED_GPU"


def missing() -> str:
    """Why there can be no pretended GPU here; empty if there can."""
    torch = _torch()
    if (torch / "lib" / "libtorch_cuda.so").exists() or (torch / "lib" / "libtorch_hip.so").exists():
        return "this torch is built for GPUs: run the test on one with DS_ACCELERATOR=cuda"
    return "" if _compiler() else "there is no C++ compiler"


@functools.cache
def library(folder: Path) -> Path:
    """The compiled library, in `folder`. A process that is started with one is told in PRETENDED_GPU where it lies."""
    if os.environ.get(LIBRARY):
        return Path(os.environ[LIBRARY])
    torch, made = _torch(), folder / "pretended_gpu.so"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{torch / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    command = [
        _compiler(),
        "-shared",
        "-fPIC",
        "-O1",
        "-std=c++20",
        *includes,
        "-o",
        str(made),
        str(HERE / "device.cpp"),
    ]
    links = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    done = subprocess.run([*command, *links], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the pretended GPU does not compile:\n{done.stderr[-3000:]}")
    return made


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), "")


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
