"""Layers whose weight is read are found in the source of the model's classes, and only these."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlhf.models.direct_weights import read_directly
from scripts.family_configs import FAMILIES
from tests.helpers.tiny import FAMILIES as COMMON
from tests.helpers.tiny import tiny_lm


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.asked, self.called = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.asked.weight.dtype) * self.norm.weight
        return self.called(x) @ self.read.weight.t()


class Inherits(Reads):
    pass


@pytest.mark.parametrize("kind", [Reads, Inherits])
def test_a_weight_that_is_read_is_told_from_one_that_is_asked_for_its_dtype(kind: type[nn.Module]) -> None:
    assert read_directly(kind()) == {"read"}
    assert read_directly(nn.Sequential(nn.Linear(4, 4), kind())) == {"1.read"}


def test_a_class_without_source_is_none_of_them() -> None:
    made = type("Made", (nn.Module,), {"forward": lambda self, x: x})
    assert read_directly(made()) == set()


@pytest.mark.parametrize("family", list(COMMON))
def test_common_families_read_none(family: str) -> None:
    assert read_directly(tiny_lm(family)) == set()


@pytest.mark.parametrize(
    "family, layers",
    [("mamba", {"x_proj", "dt_proj", "out_proj"}), ("jamba", {"dt_proj"}), ("falcon_h1", {"out_proj"}),
     ("qwen3_next", set())],
)  # fmt: skip
def test_state_space_layers_are_found(family: str, layers: set[str]) -> None:
    with torch.device("meta"):
        found = read_directly(FAMILIES[family].model())
    assert {name.rpartition(".")[2] for name in found} == layers
