"""What happens when a loss, gradient or score is not finite: the step is not applied, its batch is kept, and a run in
which nothing is applied any more ends with a checkpoint and the diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlhf import console
from rlhf.errors import TrainingError
from rlhf.json_lines import write_json_lines
from rlhf.training import distributed


class Guard:
    """Counts skipped steps. `limit` of them in a row end the run; all ranks see the same steps skipped."""

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder, self.limit, self.in_a_row = folder, limit, 0

    def watch(self, *, step: int, skipped: bool, batch: Callable[[], Iterable[Any]], save: Callable[[], None]) -> None:
        """After each step. When it was skipped, `batch()` gives the rows of this rank to keep, as JSON values; when the
        limit is reached `save()` writes a checkpoint, and TrainingError says what to look at."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if not skipped:
            return
        path = self.folder / f"step-{step:08}-rank-{distributed.rank():05}.jsonl"
        write_json_lines(path, batch())
        console.warn(f"step {step} was skipped: loss, gradient or score is not finite; its rows are in {path}")
        if self.in_a_row >= self.limit:
            save()
            raise TrainingError(
                f"{self.in_a_row} steps in a row were not finite and nothing is learned any more. Look at the rows in "
                f"{self.folder}; lower the learning rate, or use bf16 or fp32 if this is fp16. A checkpoint is written"
            )
