"""Known datasets and the user's own: one function each, row → Iterable[Example], in one table of exact names."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from data.shapes import Adapter, Row, Shape, parse_columns, recognise
from data.sources import Source
from rlhf.errors import DataError, nearest

# exact hub name → (what its rows are, function)
KNOWN: dict[str, Shape] = {}


def adapter_for(source: Source, first: Row, *, columns: str, data_adapter: str) -> Shape:
    """How to read a source: the user's function, else `columns`, else the known dataset's function, else its shape.

    Raises RowError when the first row fits no shape, DataError when the settings cannot be used.
    """
    if data_adapter:
        return Shape(f"read by {data_adapter}", load_adapter(data_adapter))
    mapping = parse_columns(columns)
    if mapping and all(column in first for column in mapping.values()):
        return recognise(first, mapping)
    known = KNOWN.get(source.hub["name"]) if source.hub else None
    return known or recognise(first, mapping)


def load_adapter(spec: str) -> Adapter:
    """The function of `--data-adapter file.py:function`."""
    name, colon, function = spec.rpartition(":")
    path = Path(name).expanduser()
    if not colon or path.suffix != ".py":
        raise DataError(f"--data-adapter {spec}: write it as file.py:function, for example my_data.py:to_example")
    if not path.is_file():
        raise DataError(f"--data-adapter {spec}: {path} does not exist")
    module_spec = importlib.util.spec_from_file_location(f"data_adapter_{path.stem}", path)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise DataError(f"--data-adapter {spec}: {path} fails on import: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names: Mapping[str, object] = {n: v for n, v in vars(module).items() if callable(v) and not n.startswith("_")}
        raise DataError(f"--data-adapter {spec}: {path} has no function '{function}'{nearest(function, names)}")
    return found
