"""Makes this process believe in one GPU whose memory is main memory; collectives over NCCL go through gloo.

`install` patches torch.cuda, torch.distributed and DeepSpeed's choice of an accelerator, for the rest of the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pretend.build import LIBRARY


@dataclass(frozen=True)
class Card:
    """What a GPU says of itself."""

    name: str
    capability: tuple[int, int]
    memory: int = 80 * 10**9


A100 = Card("A100", (8, 0))
T4 = Card("T4", (7, 5), 16 * 10**9)
# A card whose driver is older than what torch was built for.
TOO_NEW = Card("A100 with an old driver", (8, 0))
TOO_OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12020)."
CARDS = {card.name: card for card in (A100, T4, TOO_NEW)}
# Environment variable of a process: which card it has.
CARD = "PRETENDED_CARD"

_library: Any = None
_kept: list[Any] = []
collectives: Counter[str] = Counter()
"""Collectives of tensors over the pretended NCCL, by name."""


def is_installed() -> bool:
    return _library is not None


def counts() -> Counter[str]:
    """Kernels by their names; "host to device", "device to host" copies; "wait: …" for what makes the CPU wait."""
    lines = _library.pretend_counts().decode().splitlines()
    return Counter({name: int(number) for name, number in (line.split("\t") for line in lines)})


def kernels(counted: Counter[str]) -> int:
    """Kernels that a device would have been sent."""
    return sum(number for name, number in counted.items() if name.startswith("aten::"))


def waits(counted: Counter[str]) -> int:
    """How often the CPU would have waited for the device."""
    return sum(number for name, number in counted.items() if name.startswith("wait: "))


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """What happens inside, in the counter once the block has ended."""
    found: Counter[str] = Counter()
    before = counts()
    yield found
    found.update(counts() - before)


def install(library: Path | str, card: Card = A100) -> None:
    """Make `torch.cuda` one pretended card. `library` is compiled from `device.cpp`."""
    global _library
    if _library is not None:
        return
    _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    _library.pretend_live.restype = _library.pretend_peak.restype = ctypes.c_longlong
    _library.pretend_counts.restype = ctypes.c_char_p
    os.environ["DS_ACCELERATOR"] = "cuda"
    _patch_cuda(card)
    _patch_distributed()
    _patch_deepspeed()


def install_as_told() -> None:
    """As the environment names library and card."""
    card = CARDS[os.environ.get(CARD, A100.name)]
    if "rlhf.hardware" in sys.modules:
        pretend_hardware(sys.modules["rlhf.hardware"])
    if card is TOO_NEW:
        _refuse_to_begin()
    else:
        install(os.environ[LIBRARY], card)


def _refuse_to_begin() -> None:
    """A torch without CUDA already says that no GPU is available; here the reason is another one."""
    import torch

    def init() -> None:
        raise RuntimeError(f"{TOO_OLD_DRIVER} Please update your GPU driver.")

    torch.cuda.init = init


def pretend_hardware(hardware: Any) -> None:
    """What `rlhf.hardware` finds without torch: the driver's management library and torch's build. Like a scheduler
    it shows each rank one of several GPUs."""
    card = CARDS[os.environ.get(CARD, A100.name)]
    listed = [
        hardware.nvml.Gpu(number, f"GPU-{number}", card.name, card.capability, card.memory, 0, {}) for number in (0, 1)
    ]
    hardware.torch_toolkits = lambda: {"cuda": "13.0"}
    hardware.torch_build = lambda: "cuda"
    hardware.nvml.gpus = lambda: listed


def _patch_cuda(card: Card) -> None:
    import torch

    from tests.pretend import graphs

    _library.pretend_limit(ctypes.c_longlong(card.memory))
    major, minor = card.capability
    properties = types.SimpleNamespace(
        name=card.name, total_memory=card.memory, major=major, minor=minor, multi_processor_count=108, gcnArchName=""
    )

    def giving(read: Callable[[], Any]) -> Callable[..., Any]:
        """A function of its own for each name: torch's compiler keeps a table of them."""
        return lambda *arguments, **options: read()

    library = _library
    values: dict[str, Any] = {
        "is_initialized": giving(lambda: True), "is_available": giving(lambda: True), "device_count": giving(lambda: 1),
        "current_device": giving(lambda: 0), "set_device": _only_the_first,
        "is_current_stream_capturing": giving(lambda: False),
        "get_device_name": giving(lambda: card.name), "get_device_capability": giving(lambda: card.capability),
        "get_device_properties": giving(lambda: properties),
        "memory_allocated": giving(library.pretend_live), "memory_reserved": giving(library.pretend_live),
        "max_memory_allocated": giving(library.pretend_peak), "max_memory_reserved": giving(library.pretend_peak),
        "reset_peak_memory_stats": giving(library.pretend_reset_peak),
        "memory_stats": giving(lambda: {"allocated_bytes.all.current": library.pretend_live()}),
        "mem_get_info": giving(lambda: (card.memory - library.pretend_live(), card.memory)),
        "Stream": _Stream, "Event": _Event, "stream": _in_stream,
        "current_stream": giving(_Stream), "default_stream": giving(_Stream),
        "CUDAGraph": graphs.Graph, "graph_pool_handle": giving(graphs.pool_handle),
        # kernels draw from the CPU's generator, which is seeded by itself
        "get_rng_state": giving(torch.get_rng_state),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state.cpu()),
    }  # fmt: skip
    for name in ("_lazy_init", "init", "empty_cache", "synchronize", "manual_seed", "manual_seed_all"):
        values[name] = giving(lambda: None)
    for name, value in values.items():
        setattr(torch.cuda, name, value)
    _kernels_of_cuda_alone()
    torch.Tensor.record_stream = lambda self, s: None
    torch._C._host_emptyCache = lambda: None
    torch.version.cuda = "13.0"
    device = torch.device("cuda")
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda check_available=False: device
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.device_count = lambda: 1
    torch.cuda.nvtx.range_push = lambda message: 0
    torch.cuda.nvtx.range_pop = lambda: 0


def _kernels_of_cuda_alone() -> None:
    """Operations on numbers that the CPU's kernels do not take."""
    import torch

    def histc(numbers: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
        plain = torch.ops.pretend.bytes_of(numbers).float().histc(bins, min, max)
        return plain.to(numbers.dtype).to(numbers.device)

    _kept.append(torch.library.Library("aten", "IMPL"))
    _kept[-1].impl("histc", histc, "CUDA")


def _only_the_first(device: Any) -> None:
    index = getattr(device, "index", device)
    if index not in (0, -1, None, "cuda", "cuda:0"):
        raise RuntimeError(f"CUDA error: invalid device ordinal ({index}; pretended)")


class _Event:
    """An event of a stream in which everything has ended."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    wait = synchronize = record

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _Stream:
    """The only stream: kernels end before the call that starts them."""

    stream_id = device_index = cuda_stream = 0
    device_type = 1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        import torch

        self.device = torch.device("cuda", 0)

    def wait_stream(self, other: Any) -> None:
        pass

    wait_event = wait_stream

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass


@contextlib.contextmanager
def _in_stream(stream: Any) -> Iterator[None]:
    yield


# --- collectives ------------------------------------------------------------------------------------------------------

# Of a process group, with the names that gloo has for them where these differ.
_COLLECTIVES = {
    "allreduce": "", "allreduce_coalesced": "", "broadcast": "", "reduce": "", "allgather": "", "_allgather_base": "",
    "allgather_coalesced": "", "allgather_into_tensor_coalesced": "", "reduce_scatter": "", "_reduce_scatter_base": "",
    "reduce_scatter_tensor_coalesced": "", "gather": "", "scatter": "", "alltoall": "", "alltoall_base": "",
    "all_gather_single": "_allgather_base", "reduce_scatter_single": "_reduce_scatter_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
}  # fmt: skip


def _patch_distributed() -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    def bytes_of(value: Any, name: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [bytes_of(each, name) for each in value]
        if not torch.is_tensor(value):
            return value
        if not value.is_cuda:
            raise RuntimeError(f"{name}: No backend type associated with device type cpu (pretended NCCL)")
        return torch.ops.pretend.bytes_of(value.detach())

    def forwarded(name: str, of_gloo: str) -> Any:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            collectives[name] += 1
            return getattr(self.gloo, of_gloo)(*(bytes_of(argument, name) for argument in arguments), **options)

        return call

    def barrier(self: Any, *arguments: Any, **options: Any) -> Any:
        collectives["barrier"] += 1
        return self.gloo.barrier(*arguments, **options)

    class Group(dist.ProcessGroup):
        """NCCL as far as it is asked: it takes tensors of the device, and the work is gloo's on the same bytes."""

        def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
            super().__init__(rank, size)  # type: ignore[call-arg]
            self.gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

        def getBackendName(self) -> str:
            return "nccl"

        def _start_coalescing(self, device: Any) -> None:
            pass

        def _end_coalescing(self, device: Any) -> None:
            pass

    for name, of_gloo in _COLLECTIVES.items():
        setattr(Group, name, forwarded(name, of_gloo or name))
    setattr(Group, "barrier", barrier)  # noqa: B010 - as above
    dist.Backend.register_backend("pretended", Group, devices=["cuda"])
    begin = distributed_c10d.init_process_group

    def init_process_group(backend: Any = None, *arguments: Any, **options: Any) -> None:
        begin("pretended" if backend == "nccl" else backend, *arguments, **options)

    dist.init_process_group = distributed_c10d.init_process_group = init_process_group
    objects_go = distributed_c10d._get_object_coll_device

    def object_device(group: Any = None) -> Any:
        return objects_go(group) if dist.get_backend(group) == "gloo" else "cuda"

    distributed_c10d._get_object_coll_device = object_device


def _patch_deepspeed() -> None:
    """DeepSpeed may have been imported before, in the process that this one was forked from."""
    if "deepspeed" in sys.modules:
        from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
        from deepspeed.accelerator.real_accelerator import set_accelerator

        set_accelerator(CUDA_Accelerator())
