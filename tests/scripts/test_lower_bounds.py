"""The lower bounds of pyproject.toml can be read, so that they can be tried."""

from __future__ import annotations

import pytest

from rlhf.errors import ConfigError
from rlhf.pipeline.launch import ROOT
from scripts.lower_bounds import lower_bounds


def test_every_dependency_has_a_lower_bound() -> None:
    bounds = lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"torch", "transformers", "deepspeed"} <= bounds.keys()


def test_what_is_no_plain_lower_bound_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        lower_bounds('[project]\ndependencies = ["a>=1.0", "b", "c>=1,<2"]')
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["b", "c>=1,<2"]
