"""Small sources on disk, a template on a byte-level tokenizer, and settings whose cache is temporary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from data.config import DataSettings
from rlhf.template import Template, install_template
from tests.tiny import tiny_tokenizer

Write = Callable[[str, Iterable[Any]], str]


@pytest.fixture(scope="session")
def template() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("a.jsonl", rows)` writes rows (text as it is, else as JSON), one per line, and gives the path."""

    def write_rows(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DataSettings]:
    def make(*paths: str, **values: Any) -> DataSettings:
        return DataSettings(data_path=list(paths), data_cache_dir=tmp_path / "cache", **values)

    return make


@pytest.fixture
def pairs() -> Callable[..., list[dict[str, str]]]:
    """`pairs(3)`: rows with prompt, chosen and rejected, all different."""

    def make(count: int, name: str = "q") -> list[dict[str, str]]:
        return [{"prompt": f"{name} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]

    return make
