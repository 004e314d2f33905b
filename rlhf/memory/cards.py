"""GPUs: how much memory they have and how fast they are. Of this machine by NVIDIA's management library, of others by
what is known of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf import hardware, nvml

# Share of a GPU's memory that a plan may fill: the allocator loses some between blocks of other sizes.
USABLE = 0.97


@dataclass(frozen=True)
class Card:
    """A GPU: bytes of memory, 10¹² dense operations a second in bf16 (fp16 where there is no bf16), and 10⁹ bytes of
    memory that it reads in a second."""

    name: str
    memory: float
    tflops: float = 0.0
    bandwidth: float = 0.0

    @property
    def usable(self) -> float:
        return USABLE * self.memory


# Words of a product name → dense operations and bandwidth, by NVIDIA's data sheets; the first that matches counts.
_SPEEDS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250, 8000),
    ("H200", 989, 4800),
    ("H100 NVL", 835, 3900),
    ("H100 PCIe", 756, 2000),
    ("H100", 989, 3350),
    ("H800", 989, 3350),
    ("A100", 312, 1935),
    ("A800", 312, 1935),
    ("A40", 150, 696),
    ("A6000", 155, 768),
    ("L40S", 362, 864),
    ("L40", 181, 864),
    ("A30", 165, 933),
    ("A10", 125, 600),
    ("L4", 121, 300),
    ("V100", 125, 900),
    ("T4", 65, 320),
    ("5090", 210, 1792),
    ("4090", 165, 1008),
    ("3090", 71, 936),
)
# What a card of so many GB is taken for when only its memory is named.
_USUAL = (
    (16, "T4"),
    (24, "A10"),
    (32, "V100"),
    (40, "A100"),
    (48, "L40S"),
    (80, "A100"),
    (96, "H100 NVL"),
    (141, "H200"),
)


def speed_of(name: str) -> tuple[float, float]:
    """Operations and bandwidth of the card of a product name; zeros if it is not known."""
    return next(((tflops, bandwidth) for words, tflops, bandwidth in _SPEEDS if words in name), (0.0, 0.0))


def described(gigabytes: float, tflops: float | None = None) -> Card:
    """The card with so many GB (10⁹ bytes), as the usual one of its size; `tflops` replaces that one's."""
    name = next((name for size, name in _USUAL if gigabytes <= size), _USUAL[-1][1])
    known, bandwidth = speed_of(name)
    shown = f"{gigabytes:g} GB" + ("" if tflops else f", taken for {'an' if name[0] in 'AHL' else 'a'} {name}")
    return Card(shown, gigabytes * 1e9, tflops or known, bandwidth)


def this_card(tflops: float | None = None) -> Card | None:
    """The smallest visible GPU of this machine; None where the driver's library does not tell."""
    seen = [gpu for gpu in hardware.visible_gpus() if gpu.memory]
    if not seen:
        return None
    smallest = min(seen, key=lambda gpu: gpu.memory)
    known, bandwidth = speed_of(smallest.name)
    part = nvml.part_memory(hardware.visible_part()) if hardware.visible_part() else 0
    if part:  # it has as large a share of the speed, nearly
        share = part / smallest.memory
        known, bandwidth = share * known, share * bandwidth
    name = f"a part of {smallest.name}" if part else smallest.name
    return Card(name, float(part or smallest.memory), tflops or known, bandwidth)


def main_memory() -> float:
    """Bytes of main memory that processes here may use: the machine's, or the container's limit; 0 if unknown."""
    total = 0.0
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            total = 1024.0 * float(line.split()[1])
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return min(total, float(limit)) if limit.isdigit() and total else total


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
