"""The error family and its exit codes.

A `UserError` is something that the user can fix: it is shown as one line without a traceback and ends the process with
exit code 2. Everything else is a failure of the run (exit code 1).
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

EXIT_DONE, EXIT_FAILURE, EXIT_USER, EXIT_INTERRUPT, EXIT_TERMINATED = 0, 1, 2, 130, 143


class RLHFError(Exception):
    """A failure that this project recognises; its text is one sentence for the user."""

    exit_code = EXIT_FAILURE


class TrainingError(RLHFError):
    """Training cannot go on: a loss that is not finite, a lost rank, …"""


class UserError(RLHFError):
    """Something that the user can fix. `problems` holds every problem that was found, each with a way out."""

    exit_code = EXIT_USER

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another."""


class DataError(UserError):
    """A data file or row that cannot be used; names the file and the row."""


class ModelError(UserError):
    """A model folder or hub name that cannot be used."""


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread, so that unfinished work is cleaned up."""

    exit_code = EXIT_TERMINATED


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`"; did you mean 'kl_coef'?"` when a candidate is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def error_lines(error: BaseException) -> tuple[list[str], int]:
    """The lines to show for an error, and the exit code. Unknown errors become their type and first line."""
    if isinstance(error, UserError):
        return error.problems, error.exit_code
    if isinstance(error, RLHFError):
        return [str(error)], error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"], EXIT_INTERRUPT
    if isinstance(error, Terminated):
        return ["terminated"], EXIT_TERMINATED
    text = str(error).strip()
    if _disk_is_full(error, text):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return [f"the disk is full{where}; free some space and run the same command again"], EXIT_USER
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return [f"no permission to use {error.filename or 'a file'} ({error.strerror})"], EXIT_USER
    first = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    if isinstance(error, MemoryError) or any(words in text.lower() for words in ("out of memory", "allocate memory")):
        return [
            f"out of memory ({first}); lower micro_batch_size or the lengths, raise the ZeRO stage, "
            "or use activation_checkpointing or lora_rank"
        ], EXIT_FAILURE
    return [first], EXIT_FAILURE


def _disk_is_full(error: BaseException, text: str) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in text or "StorageFull" in text  # the words of safetensors and arrow
