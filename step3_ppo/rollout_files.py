"""Rollouts on disk: `rollouts/iteration-000010.jsonl`, one line per sequence, for people and `step3_ppo.show`.

Imports no torch at module level: the viewer only reads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import DataError
from rlhf.json_lines import LineError, read_json_lines, write_json_lines

if TYPE_CHECKING:
    from rlhf.template import Template
    from step3_ppo.experience import Experience

# of every row; "value" is there if a critic is
FIELDS = {"prompt", "response", "stopped", "score", "final_score", "tokens", "kl", "advantage"}


class RolloutFiles:
    """The folder of rollouts: it keeps the last `keep` iterations, every `every`th, the first and the last."""

    def __init__(self, folder: Path, *, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def write(self, experience: Experience, template: Template, *, iteration: int, last: bool) -> None:
        """Write an iteration (counted from 1) and remove the one that falls out of the last `keep`."""
        from rlhf.training import distributed

        if not distributed.is_main() or not (self._stays(iteration) or self.keep or last):
            return
        write_json_lines(self._path(iteration), rollout_rows(experience, template))
        old = iteration - self.keep
        if self.keep and old > 0 and not self._stays(old):
            self._path(old).unlink(missing_ok=True)

    def cut(self, *, after: int) -> None:
        """Remove the iterations after `after`, which a resumed run will write again."""
        from rlhf.training import distributed

        if distributed.is_main():
            for path in self.folder.glob("iteration-*.jsonl"):
                if iteration_of(path) > after:
                    path.unlink()

    def _stays(self, iteration: int) -> bool:
        return iteration == 1 or iteration % self.every == 0

    def _path(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration:06}.jsonl"


def iteration_of(path: Path) -> int:
    """The iteration that a file of rollouts is of, from 1. Raises DataError for another file."""
    try:
        return int(path.stem.rpartition("-")[2])
    except ValueError:
        raise DataError(f"{path} is not a file of rollouts: they are called iteration-000001.jsonl and so on") from None


def rollout_rows(e: Experience, template: Template) -> list[dict[str, Any]]:
    """Per sequence: prompt, response, raw and final score, the score of each of several rewards, and per counted token
    its text, KL in nats, value (with a critic) and advantage. A number that is not finite is None, and so is the score
    of a reward that does not score the row."""
    of_tokens = {"kl": e.kl_BR, "value": e.values_BR, "advantage": e.advantages_BR}
    return [
        {
            "prompt": json.loads(e.rollout.messages[row]),
            "response": template.text(e.rollout.said(row)),
            "stopped": bool(e.rollout.stopped_B[row]),
            "score": _rounded(float(e.scores_B[row])),
            "final_score": _rounded(float(e.final_scores_B[row])),
            **({"rewards": {n: _rounded(float(part_B[row])) for n, part_B in e.parts.items()}} if e.parts else {}),
            "tokens": template.token_texts(e.rollout.responses[row]),
            **{
                name: [_rounded(v) for v in e.counted(table_BR, [row]).tolist()]
                for name, table_BR in of_tokens.items()
                if table_BR is not None
            },
        }
        for row in range(len(e.rollout))
    ]


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The rows of one iteration's file. Raises DataError naming the file and line."""
    rows = []
    for line in read_json_lines(path):
        complaint = f"{path}, line {line.number} is not a row of a rollout"
        try:
            row = line.value()
        except LineError as error:
            raise DataError(f"{complaint}: it {error}") from None
        if not isinstance(row, dict):
            raise DataError(complaint)
        if missing := FIELDS - row.keys():
            raise DataError(f"{complaint}: it lacks {', '.join(sorted(missing))}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is not a file of rollouts: it is empty")
    return rows


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
