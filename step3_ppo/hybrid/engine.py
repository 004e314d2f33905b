"""The actor between training and generation: `with engine.generating() as sampler`.

Entering refreshes an inference copy from the training weights; leaving frees its memory. If the layout is the same for
training and inference, there is no copy and nothing to refresh.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf import console, process
from rlhf.errors import ConfigError
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Generation, Sampler
from rlhf.models.loading import dtype_of
from rlhf.models.lora import is_adapted
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step3_ppo.hybrid.inference_copy import InferenceCopy

# Share of the free memory after the refresh that the KV cache may take; the rest is for activations.
CACHE_SHARE = 0.6


class HybridEngine:
    """An actor that is trained through `train` and sampled from inside `generating()`.

    `tensor_parallel`: the number of ranks (neighbours on one node) that the copy is cut over. `inference_dtype`: "auto"
    is bf16 where the hardware computes in it, else the training dtype. `inference_copy`: "auto" makes a copy if it
    would differ from the training weights; "on" always (on a CPU its layout is faster); "off" never: the training
    module generates, and ZeRO-3 gathers the weights layer by layer for every token. `release`: leaving `generating()`
    frees the copy, the KV cache and CUDA graphs. `compiled`, `graphs`: as in `Sampler`.
    """

    def __init__(
        self,
        train: TrainEngine,
        *,
        pad_token_id: int,
        tensor_parallel: int = 1,
        inference_dtype: str = "auto",
        inference_copy: Literal["auto", "on", "off"] = "auto",
        release: bool = True,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        self.train, self.release = train, release
        self.seconds = {"refresh": 0.0, "generate": 0.0, "release": 0.0}
        lm = train.module.lm
        dtype = inference_dtype_of(inference_dtype, train.dtype)
        self.group = tensor_parallel_group(tensor_parallel)
        same = tensor_parallel == 1 and train.zero_stage <= 2 and dtype == train.dtype and not is_adapted(lm)
        self.copy: InferenceCopy | None = None
        if inference_copy == "on" or (inference_copy == "auto" and not same):
            # packed weights are opaque to the compiler
            self.copy = InferenceCopy(
                lm, dtype=dtype, device=distributed.device(), group=self.group, packed=not compiled
            )
        model = train.module if self.copy is None else self.copy.lm
        sampler = Sampler(
            model,
            pad_token_id=pad_token_id,
            synced=self.copy is None and train.zero_stage == 3,
            agree=None if self.group is None else self._agree,
            compiled=compiled,
            graphs=graphs,
        )
        self._sampler = sampler
        self.sampler: Any = sampler if self.group is None else GroupSampler(sampler, self.group)
        console.say(f"generation: {self.text()}")

    def text(self) -> str:
        if self.copy is None:
            return "on the training weights, without a copy"
        dtype = str(next(self.copy.lm.parameters()).dtype).removeprefix("torch.")
        ranks = 1 if self.group is None else dist.get_world_size(self.group)
        cut = f", cut over {ranks} ranks" if ranks > 1 else ""
        return f"from a copy in {dtype}{cut}, {self.copy.bytes() / 1e6:.0f} MB a rank"

    @contextlib.contextmanager
    def generating(self) -> Iterator[Any]:
        """A sampler on the current weights, valid inside the context. All ranks enter and leave together."""
        self.train.train(False)
        began = time.monotonic()
        if self.copy is not None:
            self.copy.refresh()
        self._sampler.limit_cache(cache_budget(self._sampler.cache.bytes()))
        refreshed = time.monotonic()
        try:
            yield self.sampler
        finally:
            generated = time.monotonic()
            if self.release:
                self._sampler.release()
                if self.copy is not None:
                    self.copy.release()
            ended = time.monotonic()
            self.seconds = {
                "refresh": refreshed - began,
                "generate": generated - refreshed,
                "release": ended - generated,
            }

    def timings(self) -> dict[str, float]:
        """Seconds of the last round; `time/flip` is the time of going to the copy and back."""
        s = self.seconds
        return {"time/flip": s["refresh"] + s["release"], "time/refresh": s["refresh"], "time/release": s["release"]}

    def _agree(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor on every rank of the group."""
        assert self.group is not None
        dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor


class GroupSampler:
    """The sampler of a tensor-parallel group: its ranks generate for all prompts together; each keeps its part."""

    def __init__(self, sampler: Sampler, group: dist.ProcessGroup) -> None:
        self.sampler, self.group = sampler, group

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int = 0,
        iteration: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Generation:
        """As `Sampler.generate`; `rows` must be given, because the prompts of a group are numbered together."""
        assert rows is not None, "prompts of a group need global row numbers"
        ranks, index = dist.get_world_size(self.group), dist.get_rank(self.group)
        parts: list[Any] = [None] * ranks
        dist.all_gather_object(parts, ([list(p) for p in prompts], list(rows)), group=self.group)
        all_prompts = [prompt for part, _ in parts for prompt in part]
        all_rows = [row for _, part in parts for row in part]
        whole = self.sampler.generate(all_prompts, sampling, seed=seed, iteration=iteration, rows=all_rows)
        start = sum(len(part) for part, _ in parts[:index])
        mine = slice(start, start + len(prompts))
        return Generation(whole.ids_BR[mine], whole.mask_BR[mine], whole.logprobs_BR[mine], whole.stopped_B[mine])


def cache_budget(held: int = 0) -> int:
    """Bytes that the KV cache may take on each rank: a share of the free memory, the same on all ranks. `held`: bytes
    of a cache that has stayed from the last rollout; it is used again, so they count as free."""
    free = float(distributed.free_memory())
    if not distributed.on_gpu():  # the ranks of a node share its memory
        free /= process.local_world_size()
    return int(-distributed.max_over_ranks(-(free + held)) * CACHE_SHARE)


def inference_dtype_of(name: str, training: torch.dtype) -> torch.dtype:
    """The dtype of the copy; "auto" is bf16 where the hardware multiplies in it, else the training dtype."""
    if name != "auto":
        return dtype_of(name)
    if training == torch.float16:
        return training
    return torch.bfloat16 if distributed.computes_in_bf16() else training


_groups: dict[int, dist.ProcessGroup] = {}


def tensor_parallel_group(size: int) -> dist.ProcessGroup | None:
    """This rank's group of `size` neighbours; None for 1. All ranks call it, and groups are made once."""
    if size == 1:
        return None
    world = distributed.world_size()
    local = process.local_world_size()
    if world % size or local % size:
        fitting = [str(n) for n in range(1, local + 1) if world % n == 0 and local % n == 0]
        raise ConfigError(
            f"step3_ppo.inference_tp_size={size} does not divide the {local} ranks of a node; try {', '.join(fitting)}"
        )
    if size not in _groups:
        for first in range(0, world, size):
            group = dist.new_group(list(range(first, first + size)), timeout=distributed.timeout())
            if first <= distributed.rank() < first + size:
                _groups[size] = group  # type: ignore[assignment]
    return _groups[size]
