"""Reward functions in their own process: what they get, what they return, and what is said when they fail."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import DataError
from rlhf.rewards.functions import Asked, Functions, look_at
from rlhf.rewards.names import parse

pytestmark = pytest.mark.process
SECONDS = 20.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my_rewards.py"


def rows(*responses: str, **columns: list[Any]) -> list[Asked]:
    return [
        Asked(
            [{"role": "user", "content": f"question {i}"}],
            response,
            [7] * len(response),
            is_text=True,
            columns={name: values[i] for name, values in columns.items()},
            place=f"row {i + 1}",
        )
        for i, response in enumerate(responses)
    ]


def call(file: Path, code: str, asked: list[Asked], *, name: str = "f", seconds: float = SECONDS) -> list[Any]:
    file.write_text(code)
    (reward,), problems = parse([f"{file}:{name}"])
    assert not problems
    with Functions([reward], seconds=seconds) as functions:
        return functions.scores(reward.name, asked)


# --- the examples of TRL's documentation, by their signatures and what they do ----------------------------------------


def test_a_function_of_the_completions_alone(file: Path) -> None:
    code = "def f(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n"
    assert call(file, code, rows("a", "abc", "")) == [1.0, 3.0, 0.0]


@pytest.mark.parametrize("name", ["completion_ids", "completions_ids"])
def test_a_function_of_the_ids(file: Path, name: str) -> None:
    code = f"def f({name}, **kwargs):\n    return [float(len(ids)) for ids in {name}]\n"
    assert call(file, code, rows("a", "abc")) == [1.0, 3.0]


def test_a_function_of_a_reference(file: Path) -> None:
    code = (
        "import re\n"
        "def f(completions, ground_truth, **kwargs):\n"
        "    found = [re.search(r'\\\\boxed\\{(.*?)\\}', c) for c in completions]\n"
        "    return [1.0 if m and m.group(1) == g else 0.0 for m, g in zip(found, ground_truth)]\n"
    )
    assert call(file, code, rows(r"\boxed{2}", r"\boxed{6}", ground_truth=["2", "5"])) == [1.0, 0.0]


def test_functions_that_score_rows_of_one_kind(file: Path) -> None:
    code = (
        "def f(prompts, completions, task, **kwargs):\n"
        "    return [1.0 if t == 'math' else None for p, c, t in zip(prompts, completions, task)]\n"
    )
    assert call(file, code, rows("a", "b", task=["math", "code"])) == [1.0, None]


def test_an_asynchronous_function(file: Path) -> None:
    code = (
        "import asyncio\n"
        "async def f(prompts, completions, **kwargs):\n"
        "    await asyncio.sleep(0.01)\n"
        "    return [1.0 if c else 0.0 for c in completions]\n"
    )
    assert call(file, code, rows("a", "")) == [1.0, 0.0]


def test_a_function_of_conversations(file: Path) -> None:
    code = (
        "def f(prompts, completions, **kwargs):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'q'}], prompts\n"
        "    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    asked = [Asked([{"role": "user", "content": "q"}], "abc", place="row 1")]
    assert call(file, code, asked) == [3.0]


def test_the_state_of_the_trainer(file: Path) -> None:
    file.write_text("def f(completions, trainer_state, **kwargs):\n    return [trainer_state.global_step / 10]\n")
    (reward,), _ = parse([f"{file}:f"])
    with Functions([reward], seconds=SECONDS) as functions:
        assert functions.scores("f", rows("a"), state={"global_step": 3, "max_steps": 10}) == [0.3]


# --- what goes in and comes out ---------------------------------------------------------------------------------------


def test_columns_keep_their_values(file: Path) -> None:
    columns = {"tests": [["a", 1], []], "level": [3, 2.5], "meta": [{"x": None}, {"x": True}], "name": ["ä", None]}
    code = (
        "def f(completions, tests, level, meta, name):\n"
        "    assert tests == [['a', 1], []] and level == [3, 2.5], (tests, level)\n"
        "    assert meta == [{'x': None}, {'x': True}] and name == ['ä', None], (meta, name)\n"
        "    return [1, 2]\n"
    )
    assert call(file, code, rows("a", "b", **columns)) == [1.0, 2.0]


def test_a_default_counts_where_the_data_lack_the_column(file: Path) -> None:
    code = "def f(completions, level=4):\n    return [level for _ in completions]\n"
    assert call(file, code, rows("a")) == [4.0]


def test_every_column_goes_to_a_function_that_hands_them_on(file: Path) -> None:
    code = (
        "def g(completions, **columns):\n    return columns['level']\n"
        "def f(completions, **columns):\n    return g(completions, **columns)\n"
    )
    assert call(file, code, rows("a", level=[5])) == [5.0]


@pytest.mark.parametrize(
    "made", ["np.array([1.5, 2])", "(1.5, 2)", "[np.float32(1.5), np.int64(2)]", "[1.5, True + 1]"]
)
def test_numbers_of_many_kinds(file: Path, made: str) -> None:
    assert call(file, f"import numpy as np\ndef f(completions):\n    return {made}\n", rows("a", "b")) == [1.5, 2.0]


def test_modules_beside_the_file_can_be_imported(file: Path) -> None:
    """Files of people are programs in a folder; a module named like one of the standard library must not hide it."""
    (file.parent / "beside.py").write_text("SCORE = 2.0\n")
    (file.parent / "math.py").write_text(
        "from beside import SCORE\ndef f(completions):\n    import json\n    return [SCORE]\n"
    )
    (reward,), _ = parse([f"{file.parent / 'math.py'}:f"])
    with Functions([reward], seconds=SECONDS) as functions:
        assert functions.scores("f", rows("a")) == [2.0]


def test_output_does_not_disturb_the_answers(file: Path) -> None:
    code = (
        "import sys\nprint('loaded')\ndef f(completions):\n    print('x' * 100000); sys.stdin.read()\n    return [1]\n"
    )
    assert call(file, code, rows("a")) == [1.0]


def test_signals_belong_to_the_function(file: Path) -> None:
    """math-verify and others limit themselves by SIGALRM, which Python gives to main threads alone."""
    code = (
        "import signal\n"
        "def f(completions):\n"
        "    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "    try:\n"
        "        signal.pause()\n"
        "    except ZeroDivisionError:\n"
        "        return [1.0]\n"
    )
    assert call(file, code, rows("a")) == [1.0]


def test_a_state_of_its_own_lasts_from_call_to_call(file: Path) -> None:
    file.write_text("n = 0\ndef f(completions):\n    global n; n += 1\n    return [n]\n")
    (reward,), _ = parse([f"{file}:f"])
    with Functions([reward], seconds=SECONDS) as functions:
        assert [functions.scores("f", rows("a")) for _ in range(3)] == [[1.0], [2.0], [3.0]]
        assert functions.scores("f", []) == []


# --- what is wrong, in one line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, problem",
    [
        (
            "return [1 / (len(c) - 2) for c in completions]",
            r"row 2: it raised ZeroDivisionError: .* \(my_rewards.py, l",
        ),
        ("raise RuntimeError('a\\nb')", r"row 1: it raised RuntimeError: a b"),
        ("assert len(completions) == 1; return [1]", r":f: it raised AssertionError"),  # each row alone is well
        ("import sys; sys.exit(3)", "row 1: it raised SystemExit: 3"),
        ("return [1.0]", "it returned 1 values for 3 completions"),
        ("return [1.0] * 4", "it returned 4 values for 3 completions"),
        ("return 1.0", "it returned 1.0, not a list with a number for each of the 3 completions"),
        ("return 'good'", "it returned 'good', not a list"),
        ("return {1: 2, 3: 4, 5: 6}", "not a list with a number"),
        ("return None", "it returned None, not a list"),
        ("return [1.0, float('nan'), 2]", "row 2: it returned nan, which is not a finite number"),
        ("return [1.0, 2, float('-inf')]", "row 3: it returned -inf, which is not a finite number"),
        ("return ['1', 2, 3]", "row 1: it returned '1', which is not a finite number"),
        ("return [1, [2], 3]", r"row 2: it returned \[2\], which is not a finite number"),
        ("return [1, 10**400, 3]", "row 2: it returned 1000.*…, which is not a finite number"),
        ("import os; os._exit(7)", "the process in which it runs ended with exit code 7 in a call for 3 responses"),
        ("import os; os.kill(os.getpid(), 9)", "the process in which it runs was killed by SIGKILL"),
    ],
)
def test_what_a_function_does_wrong(file: Path, body: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        call(file, f"def f(completions, **kwargs):\n    {body}\n", rows("a", "ab", "abc"))
    (line,) = error.value.problems
    assert line.startswith(f"--reward {file}:f: ")
    assert "\n" not in line


def test_a_function_that_hangs_is_stopped(file: Path) -> None:
    """Also one that holds the interpreter's lock, such as a regular expression that backtracks for ever."""
    began = time.monotonic()
    code = "import re\ndef f(completions):\n    return [bool(re.match(r'(a+)+$', 'a' * 60 + 'b'))]\n"
    with pytest.raises(DataError, match=r"no end in a call for 1 responses after 2 seconds; .*raise --reward-timeout"):
        call(file, code, rows("a"), seconds=2.0)
    assert time.monotonic() - began < 60


def test_it_ends_with_the_process_that_asks(file: Path) -> None:
    file.write_text("import os\ndef f(completions):\n    return [os.getpid()]\n")
    (reward,), _ = parse([f"{file}:f"])
    functions = Functions([reward], seconds=SECONDS)
    pid = int(functions.scores("f", rows("a"))[0] or 0)
    os.kill(pid, 0)
    functions.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_files_and_functions_that_are_not_there(file: Path) -> None:
    file.write_text("def score(completions):\n    return [1]\n")
    (file.parent / "broken.py").write_text("import no_such_module_anywhere\n")
    (file.parent / "leaves.py").write_text("raise SystemExit(1)\n")
    names = ["my_rewards.py:scores", "none.py:f", "broken.py:f", "leaves.py:f", "my_rewards.py:score"]
    rewards, _ = parse([f"{file.parent / name}" for name in names])
    found, problems = look_at(rewards, seconds=SECONDS)
    assert list(found) == ["score"]
    for line, words in zip(
        problems,
        [
            "has no function 'scores'; did you mean 'score'?",
            "none.py does not exist",
            "broken.py fails on import: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
            "leaves.py fails on import: SystemExit: 1",
        ],
        strict=True,
    ):
        assert words in line


def test_a_file_that_was_mended_is_read_again(file: Path) -> None:
    file.write_text("def g(completions):\n    return [1]\n")
    rewards, _ = parse([f"{file}:f"])
    assert look_at(rewards, seconds=SECONDS)[1]
    file.write_text("def f(completions):\n    return [1]\n")
    os.utime(file, ns=(1, 1))
    assert look_at(rewards, seconds=SECONDS)[1] == []
