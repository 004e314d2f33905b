"""Every error ends as lines for the user and an exit code."""

from __future__ import annotations

import errno

import pytest

from rlhf.errors import ConfigError, DataError, ModelError, Terminated, TrainingError, error_lines, nearest


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_what_the_user_can_fix_is_all_its_lines_and_2(kind: type[ConfigError]) -> None:
    assert error_lines(kind("one", "two")) == (["one", "two"], 2)


@pytest.mark.parametrize(
    "error, line, code",
    [
        (TrainingError("the loss is not finite"), "the loss is not finite", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (Terminated(), "terminated", 143),
        (ValueError("first\nsecond"), "ValueError: first", 1),
        (ValueError(), "ValueError", 1),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "the disk is full while writing out/x; free", 2),
        (RuntimeError("Io Error: No space left on device (os error 28)"), "the disk is full; free some space", 2),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "no permission to use out (Permission denied)", 2),
        (OSError(errno.EROFS, "Read-only file system", "out"), "no permission to use out (Read-only file system)", 2),
        (MemoryError(), "out of memory (MemoryError); lower micro_batch_size", 1),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory (RuntimeError: CUDA out of memory. Tried)", 1),
    ],
)
def test_an_error_is_one_line_and_a_code(error: BaseException, line: str, code: int) -> None:
    lines, found = error_lines(error)
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert found == code


def test_nearest_offers_only_what_is_near() -> None:
    assert nearest("kl_coeff", ["kl_coef", "gamma"]) == "; did you mean 'kl_coef'?"
    assert nearest("zzz", ["kl_coef", "gamma"]) == ""
