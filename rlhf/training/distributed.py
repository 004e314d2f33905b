"""Ranks: start and end of the process group, seeds, sums over ranks. One process needs no launcher."""

from __future__ import annotations

import functools
import os
import random
import socket
import sys
import warnings
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rlhf import hardware, nvml, process
from rlhf.config import seconds_of
from rlhf.errors import ConfigError
from rlhf.training.network import choose_interface
from rlhf.training.zero_internals import measure_memory_without_driver, turn_off_shared_memory_reduce

# How long a rank waits where another may be reading or writing files alone: a model, a checkpoint, a data cache.
PATIENCE = timedelta(hours=24)

# Over gloo, also on GPUs, where a watchdog would end a rank that waits for files.
_patient: dist.ProcessGroup | None = None

# Whether the GPUs of all ranks multiply bf16: a rank on another card must not choose another dtype than the rest.
_bf16_everywhere: bool | None = None


def timeout() -> timedelta:
    """How long a rank waits in a collective of tensors, in which all ranks take part at once, before it ends with an
    error. The launcher does not wait: it sees a dead rank."""
    return timedelta(seconds=seconds_of("RLHF_TIMEOUT_SECONDS", 1800))


def init(seed: int = 0) -> None:
    """Join the process group and seed this rank. A process that no launcher started becomes rank 0 of 1."""
    global _patient, _bf16_everywhere
    process.set_is_rank(True)
    if not dist.is_initialized():
        if not process.launched():  # what is left over from another launcher would make it wait for others
            process.set_started_alone()
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
            os.environ["MASTER_PORT"] = str(hardware.free_port())
        os.environ.setdefault("LOCAL_RANK", "0")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(hardware.free_port()))
        if not torch.cuda.is_available():
            refuse_unusable_gpus()
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
        choose_interface()
        import deepspeed

        turn_off_shared_memory_reduce()
        measure_memory_without_driver()
        _refuse_shared_gpus()
        if on_gpu():  # a scheduler may show each rank its own GPU alone; DeepSpeed takes LOCAL_RANK for a GPU's number
            os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % max(1, accelerator().device_count()))
        accelerator().set_device(int(os.environ["LOCAL_RANK"]))
        try:
            deepspeed.init_distributed(verbose=False, timeout=timeout())
        except dist.DistError as error:
            raise _not_met(error) from error
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size() > 1 else None  # type: ignore[assignment]
        _bf16_everywhere = not max_over_ranks(not gpu_has_bf16()) if on_gpu() else None
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(hardware.threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    set_seed(seed)


def refuse_unusable_gpus() -> None:
    """Raise ConfigError where the machine has GPUs that torch was built for but cannot use: a driver that is too old,
    say. Without this a rank would compute on the CPU, and nobody would be told."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not hardware.accelerators():
        return
    try:
        torch.cuda.init()
        reason = "torch.cuda.is_available() is False"
    except Exception as error:  # each cause has its own class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ConfigError(
        f"{hardware.accelerators()} GPU(s) are visible, but torch {torch.__version__} cannot use them: {reason}; "
        "install a driver or a torch that fit, or set CUDA_VISIBLE_DEVICES= to compute on the CPU"
    )


def _refuse_shared_gpus() -> None:
    """Raise ConfigError when two ranks would get the same GPU, which NCCL does not allow."""
    ranks, gpus = process.local_world_size(), accelerator().device_count()
    # where each rank sees one GPU alone, it may be another for each
    if on_gpu() and ranks > gpus and (gpus > 1 or len(nvml.gpus()) == 1):
        raise ConfigError(f"{ranks} ranks were started on this machine, which shows {gpus} GPUs; start {gpus} at most")


def _not_met(error: Exception) -> ConfigError:
    """The error of a rank that has not met the others, as the user sees it."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    text = str(error).strip().splitlines()[0]
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return ConfigError(f"port {port} of this machine is in use; give all nodes another --master-port (MASTER_PORT)")
    missing = f"node {1 - process.node()}" if process.node_count() == 2 else "the others"
    return ConfigError(
        f"rank {process.rank()} of {process.world_size()}, on {socket.gethostname()}, has not met {missing} at "
        f"{address}:{port} ({text}); start the same command on every node, and open the port between them"
    )


def set_seed(seed: int) -> None:
    """Seed every generator. All ranks use the same seed: what must differ between them is drawn by global row."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed what this rank draws in a step (dropout). It depends on seed, step and rank alone, so that a resumed run
    draws the same."""
    mixed = np.random.SeedSequence([seed, step, rank()]).generate_state(1, dtype=np.uint64)[0]
    torch.manual_seed(int(mixed) % 2**63)


def rank() -> int:
    """The number of this rank over all nodes; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks over all nodes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes the files of a run."""
    return rank() == 0


def device() -> torch.device:
    """The device of this rank's tensors: `cuda:1`, or `cpu`."""
    return torch.device(accelerator().current_device_name())


def accelerator() -> Any:
    """What this process computes on, as DeepSpeed describes it: a kind of GPU, or the CPU (with DS_ACCELERATOR=cpu)."""
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()


def on_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return accelerator().device_name() != "cpu"


def free_memory() -> int:
    """Bytes that this process can still take on its device: what the driver has, and what torch's allocator holds
    without using it. The driver alone would count that as used."""
    if accelerator().device_name() == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(accelerator().available_memory())


def gpu_has_bf16() -> bool:
    """Whether this process, and every other rank, computes on a GPU that multiplies bf16 in hardware."""
    if _bf16_everywhere is not None:
        return _bf16_everywhere
    if accelerator().device_name() == "cuda":  # DeepSpeed also counts GPUs that only emulate it
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return on_gpu() and bool(accelerator().is_bf16_supported())


@functools.cache
def computes_in_bf16() -> bool:
    """Whether bf16 matrix products run in hardware here, on this GPU or CPU, and so are faster than fp32.

    A CPU needs the instructions, and oneDNN must be allowed to use them (ONEDNN_MAX_CPU_ISA): without, a bf16 product
    takes 40 times as long as one in fp32.
    """
    if on_gpu():
        return gpu_has_bf16()
    cpu = torch.cpu.get_capabilities()
    instructions = cpu.get("avx512_bf16") or cpu.get("amx_bf16")
    return bool(instructions and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def barrier() -> None:
    """Wait until every rank has come here, however long one of them reads or writes files."""
    if world_size() > 1:
        dist.barrier(group=_patient)


def sum_over_ranks(*values: float | int | torch.Tensor) -> list[float]:
    """Each value summed over all ranks, in one all-reduce. All ranks call it. Counts are exact up to 2^53."""
    packed = torch.tensor([float(v) for v in values], dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(packed, group=_patient)
    return packed.tolist()


def max_over_ranks(value: float | int) -> float:
    """The largest of the ranks' values, on every rank. All ranks call it."""
    packed = torch.tensor(float(value), dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(packed, op=dist.ReduceOp.MAX, group=_patient)
    return float(packed)


def gather_objects(value: object) -> list:
    """The `value` of every rank in the order of the ranks, on every rank. All ranks call it; values are pickled. A rank
    waits here as in `barrier`."""
    if world_size() == 1:
        return [value]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, value, group=_patient)
    return gathered


def shutdown(code: int) -> None:
    """End this process with exit code `code`. After a failure (not 0) it does not wait for the other ranks, which may
    never answer."""
    if dist.is_initialized() and code == 0:
        barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own exit can abort inside the communication library's destructors.
    os._exit(code)
