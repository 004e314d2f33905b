"""One job of a pipeline: a module run as a process (or as ranks) with its own log, shown live. Imports no torch."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.console.replay import Replay
from rlhf.errors import RLHFError
from rlhf.pipeline.launch import launch
from rlhf.pipeline.placed import Placement, RankFailed
from rlhf.stages.result import LOG_NAME

LAST_LINES = 50  # of a job's output that are kept for its result


class JobFailed(RLHFError):
    """A job of the pipeline failed; `log` holds all of its output."""

    def __init__(self, job: str, log: Path, failure: RankFailed) -> None:
        super().__init__(str(failure))
        self.job, self.log, self.problems, self.exit_code = job, log, failure.problems, failure.exit_code


def run_job(
    name: str, folder: Path, module: str, arguments: Sequence[str], placement: Placement, log_name: str = LOG_NAME
) -> list[str]:
    """Run `python -m module` as the job `name`, with its own log, shown live. Returns the last lines of its output.

    Raises JobFailed.
    """
    lines: list[str] = []
    log_path = folder / log_name
    with log_path.open("a", encoding="utf-8", errors="backslashreplace") as log:
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {module} {shlex.join(arguments)}", file=log, flush=True)
        replay = Replay(log)

        def line(text: str) -> None:
            lines.append(text)
            del lines[:-LAST_LINES]
            replay.line(text)

        try:
            launch(module, arguments, placement, line=line, started=lambda: replay.wait(name))
        except RankFailed as failure:
            raise JobFailed(name, log_path, failure) from None
        finally:
            replay.close()
    return lines


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """`{"max_steps": 3, "quick": True}` → `["--max-steps", "3", "--quick"]`; a list repeats its flag."""
    words: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(item)]
    return words
