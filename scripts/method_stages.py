"""The stages of a method of train.py, for scripts that run all of them. Imports no torch."""

from __future__ import annotations

import train
from rlhf.stages.spec import StageSpec, methods_of, part_of

METHODS = tuple(methods_of(train.STAGES))


def stages_of(method: str = METHODS[0]) -> tuple[StageSpec, ...]:
    """The stages of a method, in their order; by default those of a run without --method."""
    return tuple(sorted((spec for spec in train.STAGES if part_of(spec, method)), key=lambda spec: spec.number))


def packages_of(method: str = METHODS[0]) -> tuple[str, ...]:
    """The names of a method's stages, which are those of their folders."""
    return tuple(spec.package for spec in stages_of(method))
