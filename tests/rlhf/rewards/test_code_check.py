"""Code that a model wrote, run in a process with limits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rlhf.rewards.code_check import code_in, code_share, passed

pytestmark = pytest.mark.process
ADD = "def add(a, b):\n    return a + b\n"


def run(code: str, *tests: str, seconds: float = 5.0, megabytes: int = 512) -> float:
    return passed(code, tests, seconds=seconds, megabytes=megabytes)


def test_the_share_of_tests_that_pass() -> None:
    assert run(ADD, "assert add(1, 2) == 3", "assert add(1, 2) == 4") == 0.5
    assert run(ADD, "assert add(1, 2) == 3") == 1.0
    assert run("def add(a, b)", "assert True") == 0.0


def test_without_tests_the_code_must_run() -> None:
    assert run(ADD) == 1.0
    assert run("1 / 0") == 0.0
    assert run("import sys; sys.exit()") == 1.0


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.write(1, b'0 1 2'); os._exit(0)",
        "raise SystemExit",
    ],
)
def test_code_that_ends_early_passes_no_test(code: str) -> None:
    """The exit code alone would say that all is well."""
    assert run(code, "assert add(1, 2) == 3") == 0.0


def test_limits_of_time_memory_and_files(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run("while True: pass", seconds=1.0) == 0.0
    assert run("import time; time.sleep(600)", seconds=1.0) == 0.0
    assert time.monotonic() - began < 60
    assert run("x = bytearray(2**30)", megabytes=256) == 0.0
    assert run(f"open({str(tmp_path / 'large')!r}, 'wb').write(bytes(2**22))") == 0.0
    assert not (tmp_path / "large").exists() or (tmp_path / "large").stat().st_size <= 2**20


def test_it_gets_no_environment_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    before = set(os.listdir())
    assert run("import os; assert 'SECRET_TOKEN' not in os.environ") == 1.0
    assert run("open('here.txt', 'w').write('x'); assert open('here.txt').read() == 'x'") == 1.0
    assert set(os.listdir()) == before


def test_the_last_block_of_a_response_counts() -> None:
    said = f"First\n```python\nx = 1\n```\nbetter:\n```py\n{ADD}```\nDone."
    assert code_in(said) == ADD
    assert code_in("```\nx = 1") == "x = 1"
    assert code_in(ADD) == ADD
    tests = [["assert add(1, 1) == 2"], "assert add(1, 1) == 3", None, ""]
    found = code_share([said] * 4 + [], tests, seconds=5.0, megabytes=512)
    assert found == [1.0, 0.0, 1.0, 1.0]


def test_nothing_is_no_code() -> None:
    assert code_share(["", "```python\n```"], None, seconds=5.0, megabytes=512) == [0.0, 0.0]
