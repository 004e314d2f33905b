"""python -m rlhf.rewards.worker FD: the process in which reward functions run, one request at a time.

Apart from the trainer, a function that hangs can be stopped, and one that ends its process, changes signals or imports
what it likes does no harm. `rlhf.rewards.functions` starts it and says what the requests are. Imports no torch.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from rlhf.errors import nearest
from rlhf.rewards.checks import check_columns, make_check
from rlhf.rewards.signature import GIVEN, Reads, reads

_PR_SET_PDEATHSIG = 1


class Wrong(Exception):
    """What is wrong with a function or its values; `row` is the row of the batch, from 0, where it is known."""

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem)
        self.row = row


def main() -> None:
    owner = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 9)  # a function that hangs would outlive a killed rank
    if os.getppid() != owner:
        os._exit(1)
    connection: Any = Connection(int(sys.argv[1]))
    functions: dict[str, Callable[..., Any]] = {}
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = _answer(request, functions)
        except Wrong as wrong:
            answer = {"problem": str(wrong), "row": wrong.row}
        sys.stdout.flush()
        connection.send_bytes(json.dumps(answer).encode())


def _answer(request: Mapping[str, Any], functions: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    name = request["name"]
    if request["do"] == "load":
        if request["kind"] == "check":
            functions[name] = make_check(request["target"], request["options"])
            needs, may = check_columns(request["target"], request["options"])
            return {"reads": asdict(Reads(["completions", "completion_ids"], needs, may))}
        functions[name] = _load(Path(request["target"]), request["function"])
        try:
            return {"reads": asdict(reads(functions[name]))}
        except ValueError as error:
            raise Wrong(str(error)) from None
    return {"values": _scores(functions[name], request["arguments"], request["rows"])}


# --- the user's file --------------------------------------------------------------------------------------------------

_MODULES: dict[Path, ModuleType] = {}


def _load(path: Path, name: str) -> Callable[..., Any]:
    module = _MODULES.get(path) or _import(path)
    _MODULES[path] = module
    found = getattr(module, name, None)
    if not callable(found):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        there = f" (it has {', '.join(functions)})" if functions else ""
        raise Wrong(f"{path} has no function '{name}'{nearest(name, functions) or there}")
    return found


def _import(path: Path) -> ModuleType:
    # beside the file stand what it imports; its own name is what other processes that it starts ask for
    sys.path.insert(0, str(path.parent.resolve()))
    known = path.stem in sys.modules or path.stem in sys.stdlib_module_names or not path.stem.isidentifier()
    name = f"reward_{path.stem}" if known else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Wrong(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit too
        raise Wrong(f"{path} fails on import: {_said(error, path)}") from None
    return module


# --- a call -----------------------------------------------------------------------------------------------------------


def _scores(function: Callable[..., Any], arguments: dict[str, Any], rows: int) -> list[float | None]:
    """The values of a batch, checked. If the function raises, its rows are tried one by one to find the first that it
    cannot score."""
    try:
        found = _call(function, arguments)
    except BaseException as error:  # SystemExit too
        if rows == 1:
            raise Wrong(f"it raised {_said(error, _file(function))}", 0) from None
        for row in range(rows):
            one = {n: [v[row]] if isinstance(v, list) else v for n, v in arguments.items()}
            try:
                _call(function, one)
            except BaseException as of_row:
                raise Wrong(f"it raised {_said(of_row, _file(function))}", row) from None
        raise Wrong(f"it raised {_said(error, _file(function))}") from None
    return checked(found, rows)


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    given = dict(arguments)
    state = given.get("trainer_state")
    if isinstance(state, dict):
        given["trainer_state"] = SimpleNamespace(**state)
    given |= {name: lambda *_, **__: None for name in GIVEN if name.startswith("log_") and name in given}
    found = function(**given)
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: Any) -> Any:
    return await found


def checked(found: Any, rows: int) -> list[float | None]:
    """What a function returned, as numbers and None. Raises Wrong."""
    if hasattr(found, "tolist"):  # an array or a tensor
        found = found.tolist()
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Sequence):
        raise Wrong(f"it returned {_shown(found)}, not a list with a number for each of the {rows} completions")
    if len(found) != rows:
        raise Wrong(f"it returned {len(found)} values for {rows} completions")
    return [_number(value, row) for row, value in enumerate(found)]


def _number(value: Any, row: int) -> float | None:
    if value is None:
        return None
    try:
        number = math.inf if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.inf
    if not math.isfinite(number):
        raise Wrong(f"it returned {_shown(value)}, which is not a finite number (or None)", row)
    return number


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _said(error: BaseException, path: Path | None) -> str:
    """`ZeroDivisionError: division by zero (rewards.py, line 12)`."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if path and Path(frame.filename) == path]
    line = lines[-1].lineno if lines else getattr(error, "lineno", None)
    where = f" ({path.name}, line {line})" if path and line else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def _file(function: Callable[..., Any]) -> Path | None:
    try:
        return Path(inspect.getfile(inspect.unwrap(function)))
    except TypeError:
        return None


if __name__ == "__main__":
    main()
