"""A stage as a value: what the pipeline, the plan, the evaluation and the report must know about it.

A stage package has a `spec.py` with its `SPEC`; `train.py` lists them. Nothing else in `rlhf/` knows a stage by name.
Imports no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.hardware import Machine
from rlhf.memory.workload import Workload
from rlhf.models.names import Kind
from rlhf.stage_config import RunSettings

ModelConfig = Mapping[str, Any]  # a model's config.json
# The models that a stage starts from, by setting; a model whose config.json is not known yet is missing.
Models = Mapping[str, ModelConfig]


def _always(settings: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class ModelInput:
    """A model that a stage starts from. `needed(settings)` says whether it does with these settings of the stage, which
    may not be valid; an earlier stage that makes nothing that is needed is left out of a run."""

    setting: str  # the stage's setting that names it
    kind: Kind = "any"
    what: str = "a model"  # in messages: "an actor"
    flags: tuple[str, ...] = ()  # pipeline settings that may name it; the first one that is given counts
    made_as: str = ""  # label of an earlier stage's output; a flag counts only in a run without that stage
    needed: Callable[[Mapping[str, Any]], bool] = _always


@dataclass(frozen=True)
class ModelOutput:
    """A model that a stage makes."""

    label: str  # in `done.json`: "actor"
    folder: str  # in the stage's folder
    of: str  # the setting of the input whose architecture it has
    kind: Kind = "language"
    title: str | Callable[[Mapping[str, Any]], str] = (
        ""  # in the evaluation: "SFT"; a model without one is not compared
    )
    made: Callable[[Any], bool] = lambda config: True  # whether a stage with these settings makes it

    def titled(self, settings: Mapping[str, Any]) -> str:
        """The title of the model that a stage with these settings made; settings that are not given have defaults."""
        return self.title(settings) if callable(self.title) else self.title


@dataclass(frozen=True)
class Chart:
    """Metrics that the report draws together (`group/*`: all of a group); a range of values that is always shown; a
    note for the reader."""

    title: str
    names: tuple[str, ...]
    note: str = ""
    floor: float | None = None
    ceiling: float | None = None
    noisy: bool = True


@dataclass(frozen=True)
class Headline:
    """A figure of the stage's result for the top of the report, and the same figure before the stage."""

    text: str
    metric: str
    before: str


@dataclass(frozen=True)
class Layout:
    """How the report shows a stage: charts, and metrics of its result with the words for them."""

    title: str
    unit: str = "step"  # of the charts' horizontal axis
    charts: tuple[Chart, ...] = ()
    results: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[Headline, ...] = ()


def _no_problems(config: Any, models: Models, machine: Machine) -> list[str]:
    return []


def _no_judges(config: Any) -> dict[str, Any]:
    return {}


def _no_columns(config: Any) -> list[str]:
    return []


def _no_workload(config: Any, models: Models, machine: Machine) -> Workload | None:
    return None


@dataclass(frozen=True)
class StageSpec:
    """Everything that others must know about a stage.

    `problems(config, models, machine)` is the stage's one list of problems with its inputs. The plan asks it about the
    models as they will be, the stage itself about the models as they are. `evaluation(config)` gives the settings of an
    evaluation on the prompts that the stage holds out; None where it holds out none. A run is evaluated on the prompts
    of its last stage that has some; `judges(config)` are the settings of what scores the answers there.
    `workload(config, models, machine)` says what the stage holds in memory and how much it computes; None where a model
    is not known yet, and for a stage that needs no plan of its memory. `columns(config)` are columns of the data that
    this stage reads and others do not, or "*" for all: the others then do not say that nobody uses them.
    """

    number: int
    package: str
    config_class: type[RunSettings]
    problems: Callable[[Any, Models, Machine], list[str]] = _no_problems
    inputs: tuple[ModelInput, ...] = ()
    outputs: tuple[ModelOutput, ...] = ()
    layout: Layout = Layout("")
    evaluation: Callable[[Any], dict[str, Any]] | None = None
    judges: Callable[[Any], dict[str, Any]] = _no_judges
    workload: Callable[[Any, Models, Machine], Workload | None] = _no_workload
    columns: Callable[[Any], list[str]] = _no_columns
    methods: tuple[str, ...] = ()  # of the pipeline of which it is a part; empty: of all of them
    # method → settings of the stage that make it that method, as if they were typed: {"kto": {"loss": "kto"}}
    method_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    process_group: bool = True  # False for a stage that needs neither torch nor other ranks

    @property
    def managed(self) -> dict[str, str]:
        """Settings that train.py sets, and what to use instead."""
        models = {model.setting: f"use --{model.flags[0].replace('_', '-')}" for model in self.inputs if model.made_as}
        return {"output_dir": "use --output-dir", **models}


def methods_of(specs: Sequence[StageSpec]) -> list[str]:
    """The methods that a list of stages knows, in the order of the stages; the first is the default."""
    return list(dict.fromkeys(method for spec in specs for method in spec.methods))


def part_of(spec: StageSpec, method: str) -> bool:
    """Whether a stage belongs to a method's pipeline."""
    return not spec.methods or method in spec.methods


def spec_of(package: str) -> StageSpec | None:
    """The `SPEC` of a stage package that can be imported here, else None."""
    try:
        if importlib.util.find_spec(f"{package}.spec") is None:
            return None
        found = getattr(importlib.import_module(f"{package}.spec"), "SPEC", None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, StageSpec) else None
