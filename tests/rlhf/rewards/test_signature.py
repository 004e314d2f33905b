"""What a reward function reads, by its signature and its source."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from rlhf.rewards.signature import Reads, needed_columns, reads

ALL = {"prompts", "completions", "completion_ids", "completions_ids", "trainer_state"}


def named(prompts, completions, ground_truth, **kwargs):  # type: ignore[no-untyped-def]
    return [0.0 for _ in completions]


def looked_up(completions, **columns):  # type: ignore[no-untyped-def]
    return [columns["solution"], columns["prompts"]]


def asked_for(completions, **columns):  # type: ignore[no-untyped-def]
    return columns.get("solution") or columns.pop("level", 0)


def asked_first(completions, **columns):  # type: ignore[no-untyped-def]
    return columns["solution"] if "solution" in columns else columns.pop("tests")


def handed_on(completions, **columns):  # type: ignore[no-untyped-def]
    return looked_up(completions, **columns)


def without_rest(completions, solution, level=1):  # type: ignore[no-untyped-def]
    return [0.0]


async def waits(prompts, completions, task, **kwargs):  # type: ignore[no-untyped-def]
    return [0.0]


class Scorer:
    def __call__(self, completions, answer, **kwargs):  # type: ignore[no-untyped-def]
        return [0.0]


@pytest.mark.parametrize(
    "function, needs, may, everything",
    [
        (named, ["ground_truth"], [], False),
        (looked_up, ["solution"], [], False),
        (asked_for, [], ["solution", "level"], False),
        (asked_first, ["tests"], ["solution"], False),
        (handed_on, [], [], True),
        (without_rest, ["solution"], ["level"], False),
        (waits, ["task"], [], False),
        (functools.partial(named, ground_truth=3), [], ["ground_truth"], True),
        (Scorer(), ["answer"], [], True),
        (eval("lambda completions, **rest: rest['a']"), [], [], True),  # its source cannot be read
    ],
)
def test_the_columns_that_a_function_reads(
    function: Callable[..., Any], needs: list[str], may: list[str], everything: bool
) -> None:
    """`columns["a"]` needs the column a; a function that hands `**columns` on may read any."""
    found = reads(function)
    assert (sorted(found.needs), sorted(found.may), found.everything) == (sorted(needs), sorted(may), everything)
    assert set(found.takes) <= ALL


def test_a_function_is_called_with_what_it_takes() -> None:
    assert set(reads(named).takes) == ALL
    assert reads(without_rest).takes == ["completions"]
    assert reads(lambda completions, trainer_state, log_metric: 0).takes == [
        "completions", "trainer_state", "log_metric",
    ]  # fmt: skip
    assert reads(lambda completions, log_metric=None: 0).takes == ["completions"]  # has its own way without


@pytest.mark.parametrize(
    "function, problem",
    [
        (lambda prompt, response: 0, "takes prompt, response and so does not see the responses"),
        (lambda: 0, "takes nothing and so does not see the responses"),
        (eval("lambda completions, /, **rest: 0"), "'completions' cannot be given by name"),
    ],
)
def test_functions_that_cannot_be_called(function: Callable[..., Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        reads(function)


def test_the_columns_of_several_functions() -> None:
    assert needed_columns([Reads(needs=["a"], may=["b"]), Reads(needs=["b"])]) == (["a", "b"], False)
    assert needed_columns([Reads(everything=True)]) == ([], True)
