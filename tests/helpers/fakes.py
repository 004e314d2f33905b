"""Stages that train nothing, as packages made on the spot, to test what starts, watches and ends stages."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# A safetensors file without tensors: the length of its header, and the header.
NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"
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
# The inputs and outputs of the three stages of a pipeline.
_MODELS = {
    1: """
inputs = (ModelInput("model", "language", "a pretrained model", flags=("actor_model",)),)
outputs = (ModelOutput("sft", "model", of="model"),)
""",
    2: """
inputs = (ModelInput("model", "any", "a pretrained model", flags=("reward_model", "actor_model")),)
outputs = (ModelOutput("reward", "model", of="model", kind="reward"),)
""",
    3: """
inputs = (
    ModelInput("actor_model", "language", "an actor", flags=("sft_model",), made_as="sft"),
    ModelInput("reward_model", "reward", "a reward model", flags=("reward_model",), made_as="reward"),
)
outputs = (ModelOutput("actor", "actor", of="actor_model"),)
""",
}
_SPEC = """
from rlhf.stages.spec import ModelInput, ModelOutput, StageSpec
from {package}.config import FakeConfig
{models}
SPEC = StageSpec({number}, "{package}", FakeConfig, inputs=inputs, outputs=outputs, process_group=False)
"""
_COMMAND = """
from rlhf.stages.command import stage_command
from {package}.spec import SPEC

main = stage_command(SPEC)

if __name__ == "__main__":
    main()
"""
_MAIN = """
import errno, importlib, json, os, signal, sys, time
from pathlib import Path
from rlhf.console import progress, say, warn
from rlhf.errors import DataError
from rlhf.metrics import MetricsLog
from rlhf.stages.result import StageResult

def run(config):
    rank = int(os.environ.get("RANK", "0"))
    with MetricsLog(config.output_dir) as log, progress("counting", total=config.steps) as bar:
        for step in range(1, config.steps + 1):
            exec(config.do)
            log.log(step, {"fake/loss": 1 / step})
            bar.update(step, {"fake/loss": 1 / step})
    spec = importlib.import_module(f"{__package__}.spec").SPEC
    models = {output.label: str(config.output_dir / output.folder) for output in spec.outputs}
    for output in spec.outputs if rank == 0 else ():
        folder = config.output_dir / output.folder
        folder.mkdir(exist_ok=True)
        kind = "SequenceClassification" if output.kind == "reward" else "CausalLM"
        value = {"architectures": [f"LlamaFor{kind}"], "model_type": "llama", "num_labels": 1}
        (folder / "config.json").write_text(json.dumps(value))
        (folder / "model.safetensors").write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")
        (folder / "tokenizer.json").write_text("")
    return StageResult(metrics={"fake/loss": 1 / config.steps}, models=models)
"""


def make_stage(folder: Path, monkeypatch: pytest.MonkeyPatch, *, number: int = 0, **modules: str) -> str:
    """Write a stage package into `folder`, importable here and in processes started from here; its name.

    `number` 1, 2 or 3 makes it that stage of a pipeline; 0 is a stage that starts from no model.
    """
    name = f"fake{next(_numbers)}_step{number}"
    package = folder / name
    package.mkdir(parents=True)
    spec = _SPEC.format(package=name, number=number or 1, models=_MODELS.get(number, "inputs = outputs = ()"))
    texts = {
        "__init__": "",
        "config": _CONFIG,
        "spec": spec,
        "__main__": _COMMAND.format(package=name),
        "main": _MAIN,
        **modules,
    }
    for module, text in texts.items():
        (package / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in known:
        root = str(Path(__file__).resolve().parents[2])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(folder), *filter(None, known)]))
    return name


def spec_of(name: str) -> Any:
    """The `SPEC` of a stage package."""
    __import__(f"{name}.spec")
    return sys.modules[f"{name}.spec"].SPEC


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
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    (folder / "tokenizer.json").write_text("{}")
    return folder
