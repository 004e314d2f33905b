"""What happens when a loss, gradient or score is not finite.

The step is not applied, and its rows are written to a file. A run in which no step is applied any more writes a
checkpoint and ends with a message that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlhf import console
from rlhf.errors import TrainingError
from rlhf.json_lines import write_json_lines
from rlhf.training import distributed


class Guard:
    """Counts skipped steps: `limit` of them in a row end the run. A step is skipped on all ranks or on none."""

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder, self.limit, self.in_a_row = folder, limit, 0

    def watch(self, *, step: int, skipped: bool, batch: Callable[[], Iterable[Any]], save: Callable[[], None]) -> None:
        """Call it after each step. For a skipped step it writes what `batch()` gives: this rank's rows, as JSON values.

        When the limit is reached it calls `save()`, which writes a checkpoint, and raises TrainingError.
        """
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
