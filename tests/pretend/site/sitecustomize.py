"""With this folder on PYTHONPATH, every Python that imports torch has the pretended GPU that PRETENDED_CARD names."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from typing import Any


def _torch_is_there(torch: Any) -> None:
    from tests.pretend.card import install_as_told

    install_as_told()


def _hardware_is_there(hardware: Any) -> None:
    from tests.pretend.card import pretend_hardware

    pretend_hardware(hardware)


class _Then(Loader):
    """A loader that calls `then` with the module when it is complete."""

    def __init__(self, loader: Any, then: Callable[[Any], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then(module)


class _Watcher(MetaPathFinder):
    def __init__(self) -> None:
        self.waiting = {"torch": _torch_is_there, "rlhf.hardware": _hardware_is_there}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        then = self.waiting.pop(fullname, None)
        if then is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, then)
        return spec


if os.environ.get("PRETENDED_CARD"):
    sys.meta_path.insert(0, _Watcher())
