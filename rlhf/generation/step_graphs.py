"""The forward of a single token as a CUDA graph: all its kernels are started at once.

For the models and batches of a rollout a GPU ends the kernels of a token sooner than the host can start them one by
one. A graph has the addresses of its tensors and every number of Python fixed in it. So ids, positions, bias and the
column of the cache lie in tensors of the graph's own, and there is a graph for each number of rows and width of cache.

B rows, S columns of the cache, D hidden size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf import console
from rlhf.generation.kv_cache import SamplerCache
from rlhf.generation.lean_forward import LeanForward

# The kind of device that has graphs.
DEVICE = "cuda"
# Graphs that are kept; of more the one goes that was not used for the longest time.
MOST_GRAPHS = 64
# Largest distance of a row's hidden state from the plain forward's, in parts of its length. The kernels are the same,
# so there should be none; but a library may choose another one, and its sums have another order.
BOUNDS = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}

Replay = Callable[[], Any]


def graphs_problem(device: torch.device, *, compiled: bool, together: bool) -> str:
    """Why a Llama-like model cannot be sampled from by graphs, as the end of a message; empty if it can."""
    if device.type != DEVICE:
        return "needs a GPU; leave it out"
    if compiled:
        return "does not go with inference_compile; drop one of them"
    if together:
        return "does not go with inference_tp_size above 1; drop one of them"
    return ""


class Capture:
    """Records what a function sends to the GPU: `capture(function)` → what starts it again, and the function's result,
    which holds something only after that. All graphs share one pool of memory; they never run at once, and between two
    tokens only their results need to stay."""

    def __init__(self) -> None:
        # one stream for all: libraries keep a workspace for each
        self.stream = torch.cuda.Stream()
        self.pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        self.stream.wait_stream(torch.cuda.current_stream())
        try:
            # the outer block also takes the stream back where an error leaves `torch.cuda.graph` too early
            with torch.cuda.stream(self.stream):
                run()  # kernels are loaded and workspaces made, which cannot be captured
                # other threads, as NCCL's, may ask the GPU about their own work meanwhile
                how: Any = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
                with torch.cuda.graph(graph, **how):
                    result = run()
        finally:
            torch.cuda.current_stream().wait_stream(self.stream)
        return graph.replay, result

    def forget(self) -> None:
        """The next graph begins a new pool. Without graphs the memory of the old one is free."""
        self.pool = None


@dataclass(eq=False)
class _Step:
    """A graph with the tensors that it reads, and the hidden states that it writes."""

    ids_B1: Tensor
    positions_B1: Tensor
    bias_B11S: Tensor
    column_1: Tensor
    hidden_BD: Tensor | None = None
    replay: Replay | None = None

    def __call__(self, ids_B1: Tensor, bias_B11S: Tensor, positions_B1: Tensor, column: int) -> Tensor:
        assert self.replay is not None and self.hidden_BD is not None
        self.ids_B1.copy_(ids_B1)
        self.positions_B1.copy_(positions_B1)
        self.bias_B11S.copy_(bias_B11S)
        self.column_1.fill_(column)
        self.replay()
        return self.hidden_BD


class StepGraphs:
    """Stands for the plain forward of single tokens on `cache`, which must be set up for it.

    A shape's first token goes through the plain forward, its second is captured, the others are replays. The second is
    also computed by the plain forward; where the two differ, or where capturing fails, a warning is shown and all
    further tokens are plain. `check` before the first token of each generation.
    """

    def __init__(self, forward: LeanForward, cache: SamplerCache) -> None:
        self.forward, self.cache = forward, cache
        self.failed = False
        self._capture: Capture | None = None
        self._steps: OrderedDict[tuple[int, int], _Step] = OrderedDict()
        self._seen: set[tuple[int, int]] = set()
        self._places: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self._steps)

    def check(self) -> None:
        """Drop the graphs if something that they read or write is elsewhere now: weights, tables, cache."""
        places = tuple((t.data_ptr(), t.numel()) for t in (*self.forward.tensors(), *self.cache.storages()))
        if places != self._places:
            self.drop()
            self._places = places

    def drop(self) -> None:
        """Forget all graphs and give their memory back."""
        self._steps.clear()
        self._seen.clear()
        if self._capture is not None:
            self._capture.forget()

    def __call__(self, ids_B1: Tensor, bias_B11S: Tensor, positions_B1: Tensor) -> Tensor:
        """Hidden states [B, D], which hold until the next call. The bias is for all columns that the cache shows."""
        column, shape = self.cache.start, (len(ids_B1), bias_B11S.shape[-1])
        inputs = ids_B1, bias_B11S, positions_B1
        if step := self._steps.get(shape):
            self._steps.move_to_end(shape)
            return step(*inputs, column)
        # to be captured, a graph needs a column that nobody has written yet
        if self.failed or shape not in self._seen or column + 1 == shape[1]:
            self._seen.add(shape)
            return self._plain(*inputs)
        return self._first(shape, inputs, column)

    def _plain(self, ids_B1: Tensor, bias_B11S: Tensor, positions_B1: Tensor) -> Tensor:
        return self.forward(ids_B1, positions_B1, self.cache, bias_B11S)

    def _first(self, shape: tuple[int, int], inputs: tuple[Tensor, Tensor, Tensor], column: int) -> Tensor:
        """Capture a graph, and compare what it says with the plain forward, whose result is returned."""
        try:
            step = self._captured(inputs, column + 1)
            found_BD = step(*inputs, column)
        except Exception as error:  # torch and the driver have many, and none of them need end a run
            self._give_up(f"none could be captured ({next(iter(str(error).splitlines()), type(error).__name__)})")
            return self._plain(*inputs)
        expected_BD = self._plain(*inputs)
        distance = float(_distance(found_BD, expected_BD))
        if not distance <= BOUNDS.get(expected_BD.dtype, 0.0):
            rows, width = shape
            self._give_up(f"one of {rows} rows and {width} columns is {distance:.1e} off the plain forward")
            return expected_BD
        self._steps[shape] = step
        if len(self._steps) > MOST_GRAPHS:
            self._steps.popitem(last=False)
        return expected_BD

    def _captured(self, like: tuple[Tensor, Tensor, Tensor], column: int) -> _Step:
        """A graph for inputs of these shapes. It is made with other numbers than it is tried with, so that one that
        does not read its inputs anew is found out; what that writes goes to `column`, where nothing is yet."""
        ids_B1, bias_B11S, positions_B1 = like
        step = _Step(
            torch.zeros_like(ids_B1, memory_format=torch.contiguous_format),
            torch.zeros_like(positions_B1, memory_format=torch.contiguous_format),
            torch.zeros_like(bias_B11S, memory_format=torch.contiguous_format),
            torch.full((1,), column, dtype=torch.long, device=ids_B1.device),
        )
        if self._capture is None:
            self._capture = Capture()
        self.cache.column = step.column_1
        try:
            step.replay, step.hidden_BD = self._capture(
                lambda: self.forward(step.ids_B1, step.positions_B1, self.cache, step.bias_B11S)
            )
        finally:
            self.cache.column = None
        return step

    def _give_up(self, why: str) -> None:
        self.failed = True
        self.drop()
        console.warn(f"inference_cuda_graphs: {why}; sampling goes on without graphs")


def _distance(found_BD: Tensor, expected_BD: Tensor) -> Tensor:
    """The largest distance of a row from what was expected, in parts of its length."""
    expected_BD = expected_BD.float()
    return ((found_BD.float() - expected_BD).norm(dim=-1) / expected_BD.norm(dim=-1)).max()
