"""The stages of the method that a run takes: `--method`. A stage may belong to some methods only (`StageSpec.methods`).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf.config import flag_of
from rlhf.errors import nearest
from rlhf.pipeline.config import PipelineConfig
from rlhf.stages.spec import StageSpec, methods_of, part_of

READ_BY_THE_PIPELINE = {"force"}  # beside the stages that have a setting of the name


def of_method(
    specs: Sequence[StageSpec], pipeline: PipelineConfig, flags: Collection[str], sets: Mapping[str, Any]
) -> tuple[list[StageSpec], list[str]]:
    """The stages of the run's method, and the problems: a method that there is not, and what was typed for stages of
    another one. `flags` are the names of the flags, `sets` those of the sections, that were typed."""
    methods = methods_of(specs)
    method = pipeline.method or next(iter(methods), "")
    if pipeline.method and method not in methods:
        known = f" (the methods are {', '.join(methods)})" if methods else ""
        return list(specs), [f"--method {method}: there is no such method{nearest(method, methods)}{known}"]
    here = [spec for spec in specs if part_of(spec, method)]
    elsewhere = {name for spec in specs for name in _set_by_flags(spec)} - READ_BY_THE_PIPELINE
    idle = elsewhere - {name for spec in here for name in _set_by_flags(spec)}
    others = {spec.package for spec in specs} - {spec.package for spec in here}
    typed = [f"--{name.replace('_', '-')}" for name in flags if name in idle]
    found = [f"{flag} has no effect with --method {method}; leave it out" for flag in typed]
    found += [
        f"--set {name}.…: {name} is no part of --method {method}; leave it out" for name in sets if name in others
    ]
    return here, found


def _set_by_flags(spec: StageSpec) -> set[str]:
    """The pipeline settings that set something of a stage, or name a model for it."""
    flags = {flag_of(spec.config_class, name) for name in spec.config_class.model_fields}
    named = {flag for each in spec.inputs for flag in each.flags}
    return (flags & PipelineConfig.model_fields.keys()) | named
