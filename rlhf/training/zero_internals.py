"""All that the project knows of DeepSpeed's insides: attributes that DeepSpeed does not promise to keep.

They were read from the source of DeepSpeed 0.19.8. No other file names them (`tests/test_architecture.py`), so another
release means reading this file against it. `tests/rlhf/training/test_engine_state.py` fails when they have moved.

On a parameter, under ZeRO-3:
    ds_id         its number; only sharded parameters have one
    ds_shape      the shape of the whole parameter; `shape` is [0] while it is not gathered
    ds_numel      the number of elements of the whole parameter
    ds_tensor     this rank's elements, flat, in the dtype of the model; the last ranks' are padded
On a parameter, under ZeRO 1 and 2:
    _hp_mapping   where this rank's part of its fp32 master lies; None when no element of it is on this rank
On DeepSpeed's optimiser (`engine.optimizer`):
    optimizer     the torch optimiser inside it; at ZeRO-0 in fp32 there is no wrapper, and this is missing
    loss_scaler   numbers of the loss scale; only some optimisers have one
    fp32_partitioned_groups_flat     ZeRO-3: this rank's fp32 masters, one flat tensor per sub-group
    grad_position, get_param_id      ZeRO-3: parameter → (which flat tensor, offset in it, number of elements)
    single_partition_of_fp32_groups  ZeRO 1 and 2: this rank's fp32 masters, one flat tensor per parameter group
    averaged_gradients, all_grad_tensors, accumulated_grads_in_cpu
                                     ZeRO 1 and 2: sums of the gradients of earlier backwards
    micro_step_id                    ZeRO 1 and 2: the number of backwards since the last step, less one
In `deepspeed.ops`:
    __compatible_ops__               which compiled operators DeepSpeed believes it can build, by name
In `deepspeed.accelerator.cuda_accelerator`:
    pynvml                           the driver's library, if it is installed; without it, torch tells the free memory

`engine` is DeepSpeed's engine in all functions here; `TrainEngine` has a method for whatever others need of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A run of elements of one parameter, and where this rank holds them.

    The elements `start` to `start + count` of the flattened parameter `name` are the elements from `offset` on of the
    flat tensor number `flat` of `masters(engine)`.
    """

    name: str
    start: int
    count: int
    flat: int
    offset: int


# --- a parameter -----------------------------------------------------------------------------------------------------


def is_sharded(parameter: Any) -> bool:
    """Whether ZeRO-3 has cut this parameter over the ranks."""
    return hasattr(parameter, "ds_id")


def full_numel(parameter: Any) -> int:
    """The number of elements of the whole parameter, on however many ranks they are."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def full_shape(parameter: Any) -> torch.Size:
    """The shape of the whole parameter, on however many ranks its elements are."""
    return getattr(parameter, "ds_shape", parameter.shape)


def has_master(parameter: Any) -> bool:
    """Whether the optimiser may hold an fp32 master of this parameter: DeepSpeed has prepared it for ZeRO 1, 2 or 3."""
    return hasattr(parameter, "_hp_mapping") or is_sharded(parameter)


def own_part(parameter: Any, *, rank: int) -> tuple[Tensor, int]:
    """This rank's elements of a sharded parameter without their padding (flat; writing to them changes the parameter),
    and where in the whole parameter they begin."""
    held = parameter.ds_tensor
    start = held.numel() * rank
    return held[: max(min(held.numel(), parameter.ds_numel - start), 0)], start


# --- an optimiser ----------------------------------------------------------------------------------------------------


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimiser inside DeepSpeed's; its state is in the layout of `masters(engine)`."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def masters(engine: Any) -> list[Tensor]:
    """This rank's part of the fp32 masters of all trained weights, as the optimiser holds them: flat tensors under
    ZeRO 1 to 3, the parameters themselves at ZeRO-0."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [p for group in optimizer.param_groups for p in group["params"]]


def fragments(engine: Any, *, rank: int) -> list[Fragment]:
    """Where the elements of each trained parameter lie in `masters(engine)` on this rank. Other ranks hold the other
    elements; at ZeRO-0 every rank holds all."""
    optimizer = engine.optimizer
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    found = []
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for name, parameter in trained:
            flat, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = count * rank
            inside = min(count, parameter.ds_numel - start)  # the last partitions are padded
            if inside > 0:
                found.append(Fragment(name, start, inside, int(flat), int(offset)))
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        for name, parameter in trained:
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
                found.append(Fragment(name, lp.start, lp.numel, mapping.param_group_index, hp.start))
    else:
        index = {id(p): i for i, p in enumerate(masters(engine))}
        found = [Fragment(name, 0, p.numel(), index[id(p)], 0) for name, p in trained]
    return found


def forget_gradients(engine: Any) -> None:
    """Undo all backwards since the last step."""
    optimizer = engine.optimizer
    optimizer.zero_grad()
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        # ZeRO 1 and 2 keep sums of earlier backwards beside the gradients, and zero_grad leaves them as they are
        for sums in ("averaged_gradients", "all_grad_tensors", "accumulated_grads_in_cpu"):
            getattr(optimizer, sums, {}).clear()
        optimizer.micro_step_id = -1


def loss_scale(engine: Any) -> dict[str, Any]:
    """The numbers of the loss scaler (fp16 has one that adapts), by name; empty where there is none."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {} if scaler is None else {k: v for k, v in vars(scaler).items() if isinstance(v, (int, float))}


def current_loss_scale(engine: Any) -> float:
    """By how much the loss is multiplied now; 1 where there is no scaler."""
    return float(loss_scale(engine).get("cur_scale", 1.0))


def set_loss_scale(engine: Any, numbers: Mapping[str, Any]) -> None:
    """Put back what `loss_scale` gave. Another ZeRO stage may have another scaler, or none; a number that it does not
    know is left out."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in numbers.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


# --- communication ---------------------------------------------------------------------------------------------------


def turn_off_shared_memory_reduce() -> None:
    """Call it before the process group is made: on CPUs DeepSpeed's own all-reduce through shared memory ignores
    `group=`, and its results are then wrong without an error."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def measure_memory_without_driver() -> None:
    """Let DeepSpeed ask torch for free memory, not the driver: to find a GPU in the driver's list it reads
    CUDA_VISIBLE_DEVICES as numbers, and UUIDs, of MIG devices too, end the process."""
    from deepspeed.accelerator import cuda_accelerator

    cuda_accelerator.pynvml = None
