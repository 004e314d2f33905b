"""train.py called in this process on four cores, and the flags that it needs: what tests of train.py share.

A test file uses a fixture from here by its name: `machine = calls.machine`.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import train
from rlhf import hardware
from tests.helpers.fakes import make_model


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four cores, no GPU, a working folder of its own."""
    monkeypatch.setattr(hardware, "accelerators", lambda: 0)
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_DEBUG", "")


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Flags that name an existing model and data, and an output folder that does not exist yet."""
    make_model(tmp_path / "model")
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--actor-model", "model", "--data-path", "rows.jsonl", "--output-dir", "out"]


def run(*words: str, command: click.Command = train.main) -> Result:
    """`command` (default: train.py's), called with `words`."""
    return CliRunner().invoke(command, list(words))
