"""What the machine has: cores and GPUs. Looked up without torch, so that a plan is checked in milliseconds."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rlhf import nvml

_CGROUP = Path("/sys/fs/cgroup")
_AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
_BF16_CAPABILITY = (8, 0)  # NVIDIA's Ampere and later multiply bf16 in hardware


@dataclass(frozen=True)
class Machine:
    """The hardware of a run: `ranks` on each of `nodes`; `bf16` says whether its GPUs compute in bf16.

    `described`: it is not this machine, so nothing of it can be looked at, and the network is not asked.
    """

    ranks: int = 1
    nodes: int = 1
    gpus: bool = False
    bf16: bool = False
    described: bool = False

    @property
    def world_size(self) -> int:
        """Ranks on all nodes together."""
        return self.ranks * self.nodes


ONE_RANK = Machine()


def cores() -> int:
    """CPU cores that this process may use: its affinity, and the container's quota where there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    return allowed


def accelerators() -> int:
    """GPUs that torch could use here: those that are visible, 0 when the installed torch is built without GPUs."""
    build = torch_build()
    if build == "cuda":
        return len(visible_indices())
    if build == "rocm":
        names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        listed = next((os.environ[name] for name in names if name in os.environ), None)
        return len(visible(_amd_gpus(), listed))
    return 0


def visible_indices() -> list[int]:
    """The numbers, in the order of the bus, of the NVIDIA GPUs that are visible."""
    uuids = [gpu.uuid for gpu in nvml.gpus()]
    entries = visible(_nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)
    found = []
    for entry in entries:
        named = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
        found.append(int(entry) if entry.isdigit() else named[0] if named else 0)
    return found


def idle_gpus() -> int:
    """GPUs of the machine that the installed torch cannot use, for a warning."""
    return 0 if torch_build() else max(_nvidia_gpus(), _amd_gpus())


def bf16_gpus() -> bool:
    """Whether all visible GPUs multiply bf16 in hardware."""
    if torch_build() == "rocm":
        return True
    capabilities = _nvidia_capabilities()
    return accelerators() > 0 and all(capabilities[index] >= _BF16_CAPABILITY for index in visible_indices())


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU has instructions for products in bf16."""
    flags = re.search(r"^flags\s*:(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return bool(flags and {"avx512_bf16", "amx_bf16"} & set(flags[1].split()))


def missing_compiler() -> str:
    """The C++ compilers that torch.compile looks for on a CPU, if none of them is installed; else an empty string."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return "" if any(shutil.which(name) for name in names) else " or ".join(names)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether nobody listens on a TCP port of this machine."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def visible(count: int, listed: str | None, uuids: Sequence[str] = ()) -> list[str]:
    """The devices that a `*_VISIBLE_DEVICES` value leaves of `count`: "2,0" → ["2", "0"], "" → [].

    As in the driver, an entry that does not exist ends the list, a UUID may be cut short as long as it names one GPU,
    and a process sees one MIG device at most. Without `uuids`, UUIDs are taken as they are.
    """
    if listed is None:
        return [str(index) for index in range(count)]
    found: list[str] = []
    for entry in (part.strip() for part in listed.split(",")):
        if not entry or (re.fullmatch(r"-?\d+", entry) and not 0 <= int(entry) < count) or entry in found:
            break
        if entry.startswith("GPU-") and uuids and sum(uuid.startswith(entry) for uuid in uuids) != 1:
            break
        found.append(entry)
        if entry.startswith("MIG-"):
            break
    return found if count else []


@lru_cache(maxsize=1)
def torch_build() -> str:
    """ "cuda", "rocm" or "" for CPU, from the installed torch's version file; nothing is imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    text = _read(Path(spec.submodule_search_locations[0]) / "version.py")
    for name, build in (("cuda", "cuda"), ("hip", "rocm")):
        if re.search(rf"^{name}\b[^=]*=\s*['\"]", text, re.MULTILINE):
            return build
    return ""


def _nvidia_gpus() -> int:
    return len(_nvidia_capabilities())


@lru_cache(maxsize=1)
def _nvidia_capabilities() -> list[tuple[int, int]]:
    """The compute capability of each NVIDIA GPU, from the driver's management library; empty without a driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
            library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
            found.append((major.value, minor.value))
        return found
    finally:
        library.nvmlShutdown()


def _amd_gpus() -> int:
    # CPUs are also nodes of the topology, but have no SIMD units
    return sum(
        bool(re.search(r"^simd_count\s+[1-9]", _read(node / "properties"), re.MULTILINE))
        for node in (_AMD_NODES.iterdir() if _AMD_NODES.is_dir() else ())
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
