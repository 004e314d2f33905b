"""Stages that train nothing, as packages made on the spot: what starts, watches and ends stages is tested with them."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count()

_CONFIG = """
from rlhf.config import setting
from rlhf.stage_config import BatchSettings, RunSettings

class FakeConfig(RunSettings, BatchSettings):
    '''A stage that counts.'''
    model: str = setting("", "the model")
    actor_model: str = setting("", "the actor")
    reward_model: str = setting("", "the reward model")
    steps: int = setting(3, "how far it counts", ge=1)
    do: str = setting("", "Python that is run at every step")
    note: str = setting("", "may change", resumable=True)

    def problems(self, world_size):
        return [f"{package}.steps=13 is unlucky; try 12"] if self.steps == 13 else []

package = __name__.partition(".")[0]
"""
_COMMAND = """
from {package}.config import FakeConfig
from rlhf.stage import stage_command

main = stage_command(FakeConfig, package="{package}", process_group=False)

if __name__ == "__main__":
    main()
"""
_MAIN = """
import errno, os, signal, sys, time
from pathlib import Path
from rlhf.console import progress, say, warn
from rlhf.errors import DataError
from rlhf.metrics import MetricsLog
from rlhf.stage import StageResult

def run(config):
    rank = int(os.environ.get("RANK", "0"))
    with MetricsLog(config.output_dir) as log, progress("counting", total=config.steps) as bar:
        for step in range(1, config.steps + 1):
            exec(config.do)
            log.log(step, {"fake/loss": 1 / step})
            bar.update(step, {"fake/loss": 1 / step})
    folders = {1: {"sft": "model"}, 2: {"reward": "model"}, 3: {"actor": "actor"}}
    number = int(__package__[-1]) if __package__[-1].isdigit() else 1
    models = {label: str(config.output_dir / name) for label, name in folders.get(number, {}).items()}
    return StageResult(metrics={"fake/loss": 1 / config.steps}, models=models)
"""


def make_stage(folder: Path, monkeypatch: pytest.MonkeyPatch, *, suffix: str = "", **modules: str) -> str:
    """Write a stage package into `folder`, importable here and in processes started from here; its name."""
    name = f"fake{next(_numbers)}_{suffix}" if suffix else f"fake{next(_numbers)}_stage"
    package = folder / name
    package.mkdir(parents=True)
    texts = {"__init__": "", "config": _CONFIG, "__main__": _COMMAND.format(package=name), "main": _MAIN, **modules}
    for module, text in texts.items():
        (package / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in known:
        root = str(Path(__file__).resolve().parents[2])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(folder), *filter(None, known)]))
    return name


def command_of(name: str) -> Any:
    """The click command of a stage package."""
    __import__(f"{name}.__main__")
    return sys.modules[f"{name}.__main__"].main


def make_model(folder: Path, *, scalar_head: bool = False, positions: int = 2048) -> Path:
    """A folder that looks like a model, as far as can be told without torch."""
    kind = "ForSequenceClassification" if scalar_head else "ForCausalLM"
    labels = ', "num_labels": 1' if scalar_head else ""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        f'{{"architectures": ["Llama{kind}"], "model_type": "llama", "max_position_embeddings": {positions}{labels}}}'
    )
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    return folder
