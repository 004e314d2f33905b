"""What may be wrong with the GPUs of this machine before a rank uses them. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlhf import hardware, nvml
from rlhf.pipeline.placed import Placement

_SHARED_MEMORY = Path("/dev/shm")
# A rank takes some tens of megabytes of shared memory for NCCL; containers have 64 MB unless told otherwise.
_SHARED_BYTES_A_RANK = 128 * 2**20
_OWN_BYTES = 1e9  # what the driver and a display may hold on a GPU that is free


def gpu_problems() -> list[str]:
    """A line when GPUs cannot be used, although there are some: CUDA_VISIBLE_DEVICES names none of them, or others
    beside them, or the driver is too old for torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = nvml.gpus()
    if (listed is not None and listed.strip() in ("", "-1")) or not known or hardware.torch_build() != "cuda":
        return []
    names = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in known)
    if not hardware.accelerators():
        return [
            f"CUDA_VISIBLE_DEVICES={listed} names no GPU of this machine, which has {names}; name these or unset it"
        ]
    if stranger := _stranger(listed or "", [gpu.uuid for gpu in known]):
        return [
            f"CUDA_VISIBLE_DEVICES={listed}: the driver stops at {stranger}, which is no GPU of this machine, names "
            f"several or stands twice; it has {names}; correct the list"
        ]
    driver, built = nvml.cuda_version(), hardware.torch_toolkits()["cuda"]
    needed = built.partition(".")[0]
    if driver is not None and needed.isdigit() and driver[0] < int(needed):  # a newer minor version is no obstacle
        return [
            f"the NVIDIA driver runs CUDA {driver[0]}.{driver[1]} at most, and the installed torch needs CUDA {built}: "
            f"install a newer driver, or a torch that is built for CUDA {driver[0]} (--num-gpus 0 runs on the CPU)"
        ]
    return []


def _stranger(listed: str, uuids: Sequence[str]) -> str:
    """The first entry of a list of GPUs at which the driver stops; empty if there is none. It takes one MIG device, and
    -1 ends a list on purpose."""
    entries = [entry.strip() for entry in listed.split(",")] if listed.strip() else []
    seen = hardware.visible(len(uuids), listed, uuids)
    if len(seen) == len(entries) or seen[0].startswith("MIG-") or entries[len(seen)] == "-1":
        return ""
    return entries[len(seen)] or "an empty entry"


def gpu_warnings(placement: Placement) -> list[str]:
    """What is not right, but may go well: GPUs that others use, different cards, little shared memory. A line each."""
    if placement.hosts:
        return list(placement.warnings)
    if not placement.gpus:
        return []
    chosen = hardware.visible_gpus()[: placement.ranks]
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
