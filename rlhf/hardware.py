"""What the machine has: cores and GPUs. Looked up without torch, so that a plan is checked in milliseconds."""

from __future__ import annotations

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


def threads(ranks: int) -> int:
    """Threads of each of `ranks` processes: OMP_NUM_THREADS as OpenMP reads it, a number or a list (`4,2`), else a part
    of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else max(1, cores() // ranks)


def accelerators() -> int:
    """GPUs that torch could use here: those that are visible, 0 when the installed torch is built without GPUs."""
    build = torch_build()
    if build == "cuda":
        return len(visible_gpus())
    if build == "rocm":
        names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        listed = next((os.environ[name] for name in names if name in os.environ), None)
        return len(visible(_amd_gpus(), listed))
    return 0


def visible_gpus() -> list[nvml.Gpu]:
    """The NVIDIA GPUs that are visible; for a MIG device, whose GPU is not told, the first."""
    known = nvml.gpus()
    entries = visible(len(known), os.environ.get("CUDA_VISIBLE_DEVICES"), [gpu.uuid for gpu in known])
    found = []
    for entry in entries:
        named = [gpu for gpu in known if gpu.uuid.startswith(entry)]
        found.append(known[int(entry)] if entry.isdigit() else named[0] if named else known[0])
    return found


def visible_part() -> str:
    """The MIG device (`MIG-…`) that alone is visible; an empty string if none is."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return first if first.startswith("MIG-") else ""


def idle_gpus() -> int:
    """GPUs of the machine that the installed torch cannot use, for a warning."""
    return 0 if torch_build() else max(len(nvml.gpus()), _amd_gpus())


def bf16_gpus() -> bool:
    """Whether all visible GPUs multiply bf16 in hardware."""
    if torch_build() == "rocm":
        return True
    return accelerators() > 0 and all(gpu.capability >= _BF16_CAPABILITY for gpu in visible_gpus())


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


def knows_host(name: str) -> bool:
    """Whether this machine finds the address of a host."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def visible(count: int, listed: str | None, uuids: Sequence[str] = ()) -> list[str]:
    """The devices that a `*_VISIBLE_DEVICES` value leaves of `count`: "2,0" → ["2", "0"], "" → [].

    As in the driver, an entry that does not exist ends the list, a UUID may be cut short as long as it names one GPU,
    and a process sees one MIG device at most. Without `uuids`, UUIDs are taken as they are.
    """
    if listed is None:
        return [str(index) for index in range(count)]
    found: list[str] = []
    for entry in (part.strip() for part in listed.split(",")):
        if not re.match(r"\d+$|GPU-|MIG-", entry) or (entry.isdigit() and int(entry) >= count) or entry in found:
            break
        if entry.startswith("GPU-") and uuids and sum(uuid.startswith(entry) for uuid in uuids) != 1:
            break
        found.append(entry)
        if entry.startswith("MIG-"):
            break
    return found if count else []


def torch_build() -> str:
    """ "cuda", "rocm" or "" for CPU, from the installed torch's version file; nothing is imported."""
    return next((build for name, build in (("cuda", "cuda"), ("hip", "rocm")) if name in torch_toolkits()), "")


@lru_cache(maxsize=1)
def torch_toolkits() -> dict[str, str]:
    """What the installed torch is built with, such as {"cuda": "13.0"}; empty for CPUs alone."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return {}
    text = _read(Path(spec.submodule_search_locations[0]) / "version.py")
    return dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*['\"]([^'\"]*)", text, re.MULTILINE))


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
