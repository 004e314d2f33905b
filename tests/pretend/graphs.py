"""CUDA graphs played on the CPU: what is captured has its tensors' addresses and every number of Python fixed in it.

As on a GPU, capturing computes nothing, and a replay writes into the memory of the capture, whatever has been done to
the tensors since. What would make the host wait for the GPU cannot be captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Operations whose result the host must know before it goes on.
WAITING = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
)  # fmt: skip
REFUSED = "operation not permitted when stream is capturing (pretended)"


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _fixed(value: Any) -> Any:
    """A tensor's memory as it is now: what is assigned to its `data` later goes unseen."""
    return value.detach() if _is_tensor(value) else value


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Recorder(TorchDispatchMode):
    """Keeps each operation that starts a kernel, with the memory that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []
        self.own: dict[int, Tensor] = {}  # memory that the graph's operations have made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if _is_tensor(value)]
        self._refuse(func, args, kwargs, given)
        returned = [each.alias_info for each in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in returned):
            return func(*args, **kwargs)  # a view starts no kernel
        arguments = tree_map(_fixed, (args, kwargs))
        if any(alias is not None for alias in returned):
            written = kwargs.get("out", args[0])
            if _address(written) in self.own:
                func(*args, **kwargs)
            self.operations.append((func, *arguments, []))
            return written
        result = func(*args, **kwargs)
        results = [value for value in tree_leaves(result) if _is_tensor(value)]
        for value in results:
            if _address(value) not in map(_address, given):
                self.own[_address(value)] = value
        self.operations.append((func, *arguments, [_fixed(value) for value in results]))
        return result

    def _refuse(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        name = func._schema.name.removeprefix("aten::")
        devices = {tensor.device for tensor in given if tensor.dim()}
        if name == "_to_copy" and kwargs.get("device") is not None:
            devices.add(torch.empty(0, device=kwargs["device"]).device)
        indices = [value for value in tree_leaves(args[1:2]) if _is_tensor(value)]
        by_mask = name in ("index", "index_put_", "index_put") and any(t.dtype == torch.bool for t in indices)
        if name in WAITING or by_mask or len(devices) > 1:
            raise RuntimeError(f"{func}: {REFUSED}")


class Graph:
    """`torch.cuda.CUDAGraph`, as far as it is asked."""

    made = 0
    replayed = 0

    def __init__(self, keep_graph: bool = False) -> None:
        self._recorder: _Recorder | None = None
        self._operations: list[Any] = []

    def capture_begin(self, pool: Any = None, **options: Any) -> None:
        self._recorder = _Recorder()
        self._recorder.__enter__()

    def capture_end(self) -> None:
        assert self._recorder is not None
        self._recorder.__exit__(None, None, None)
        for memory in self._recorder.own.values():
            if memory.is_floating_point():
                memory.fill_(float("nan"))  # nothing has been computed
        self._operations, self._recorder = self._recorder.operations, None
        Graph.made += 1

    def replay(self) -> None:
        Graph.replayed += 1
        with torch.no_grad():
            for function, arguments, options, results in self._operations:
                found = [value for value in tree_leaves(function(*arguments, **options)) if _is_tensor(value)]
                for result, value in zip(results, found, strict=False):
                    result.copy_(value)

    def reset(self) -> None:
        self._operations = []


def pool_handle() -> tuple[int, int]:
    return (0, 1)
