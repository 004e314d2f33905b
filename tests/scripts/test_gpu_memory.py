"""The plan's memory of stage 3 is what a GPU counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu_memory import CELLS, Cell, largest, measured

pytestmark = pytest.mark.slow
# The others are a command: python -m scripts.gpu_memory
CHOSEN = ("opt 6M, ZeRO-2", "opt 6M, ZeRO-3 × 2, LoRA, tp 2")


def _measured(folder: Path, cell: Cell) -> dict[str, tuple[float, float]]:
    return measured(folder, cell.size, cell.settings)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.name in CHOSEN], ids=lambda cell: cell.name)
def test_the_largest_phase_is_planned_to_five_percent(
    cell: Cell, run_on_gpu: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for phases in run_on_gpu(_measured, tmp_path, cell, world_size=cell.ranks):
        plan, real = largest(phases)
        assert plan == pytest.approx(real, rel=0.05), phases
        assert len(phases) == 7 and min(real for _, real in phases.values()) > 20e6
