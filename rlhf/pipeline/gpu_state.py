"""What may be wrong with the GPUs of this machine before a rank uses them. Imports no torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlhf import hardware, nvml
from rlhf.pipeline.placed import Placement

_SHARED_MEMORY = Path("/dev/shm")
# A rank takes some tens of megabytes of shared memory for NCCL; containers have 64 MB unless told otherwise.
_SHARED_BYTES_A_RANK = 128 * 2**20
_OWN_BYTES = 1e9  # what the driver and a display may hold on a GPU that is free


def visibility_problems() -> list[str]:
    """A line when CUDA_VISIBLE_DEVICES names none of the GPUs that the machine has, or several MIG devices."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    all_gpus = nvml.gpus()
    if not listed or listed == "-1" or not all_gpus or hardware.torch_build() != "cuda":
        return []
    if not hardware.accelerators():
        known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in all_gpus)
        return [
            f"CUDA_VISIBLE_DEVICES={listed} names no GPU of this machine, which has {known}; name these or unset it"
        ]
    return []


def gpu_warnings(placement: Placement) -> list[str]:
    """What is not right, but may go well: GPUs that others use, different cards, little shared memory. A line each."""
    if not placement.gpus or placement.hosts:
        return []
    used = hardware.visible_indices()[: placement.ranks]
    chosen = [gpu for gpu in nvml.gpus() if gpu.index in used]
    return [*_in_use(chosen), *_mixed(chosen), *_little_shared_memory(placement.ranks)]


def _in_use(gpus: list[nvml.Gpu]) -> list[str]:
    found = []
    for gpu in gpus:
        others = [
            f"process {pid}{f' ({name})' if (name := _name_of(pid)) else ''} with {size / 1e9:.1f} GB"
            for pid, size in gpu.processes.items()
        ]
        if others:
            found.append(f"GPU {gpu.index} ({gpu.name}) is in use by {', '.join(others)}; it may lack that memory")
        elif gpu.used > _OWN_BYTES:
            found.append(
                f"GPU {gpu.index} ({gpu.name}): {gpu.used / 1e9:.1f} GB are in use by processes that cannot be seen "
                "from here; it may lack that memory"
            )
    return found


def _name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _mixed(gpus: list[nvml.Gpu]) -> list[str]:
    if len({gpu.name for gpu in gpus}) < 2:
        return []
    cards = ", ".join(f"{gpu.index} {gpu.name}" for gpu in gpus)
    return [
        f"the GPUs differ ({cards}): the slowest sets the pace, and dtype=auto is bf16 only where all compute in it"
    ]


def _little_shared_memory(ranks: int) -> list[str]:
    try:
        size = shutil.disk_usage(_SHARED_MEMORY).total
    except OSError:
        return []
    needed = ranks * _SHARED_BYTES_A_RANK
    if ranks == 1 or size >= needed:
        return []
    return [
        f"/dev/shm holds {size >> 20} MB, and NCCL may need {needed >> 20} MB for {ranks} ranks; start the container "
        "with --shm-size=8g or --ipc=host"
    ]
