"""What a stage reads its rows from: memory-mapped, by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


class Rows(Sequence[dict[str, Any]]):
    """Memory-mapped rows, by number; `lengths` are their tokens, for sorting micro-batches by length.

    `report` says where they come from and what became of them.
    """

    def __init__(self, dataset: Dataset, sources: Sequence[str], report: dict[str, Any] | None = None) -> None:
        self._dataset, self._sources = dataset, list(sources)
        self.lengths = self.column("length").astype(np.int32)
        self.report = report or {}

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, one entry a row."""
        return np.asarray(self._dataset.with_format("numpy")[name][:])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        row = self._dataset[int(index)]
        if "source" in row:
            row["source"] = self._sources[row["source"]]
        return row
