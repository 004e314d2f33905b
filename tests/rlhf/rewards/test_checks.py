"""The ready-made rewards, by what they give for responses."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from rlhf.rewards.checks import answer_in, check_columns, make_check, option_problems

CHAT = [{"role": "assistant", "content": "It is #### 4"}]


def scores(name: str, responses: list[Any], options: dict[str, str] | None = None, **columns: Any) -> list[Any]:
    return make_check(name, options or {})(completions=responses, **columns)


@pytest.mark.parametrize(
    "right, said",
    [
        ("42", "42"),
        (42, " 42.\n"),
        (42, "42.0"),
        ("1234.5", "$1,234.50"),
        ("-7", "−7"),
        (r"\frac{1}{2}", "0.5"),
        ("1/2", r"so \boxed{\frac{1}{2}}"),
        (r"\frac{-3}{4}", r"\boxed{-0.75}"),
        ("4", r"first \boxed{3}, then \boxed{4}"),
        (r"\{1, 2\}", r"\boxed{\{1, 2\}}"),
        ("12 + 30 = 42\n#### 42", "Twelve and thirty.\n#### 42\nI am sure."),
        ("Paris", "#### paris"),
        (r"\text{Paris}", r"\boxed{Paris}"),
        (["4", "four"], "Four"),
        ("New  York", "new york."),
    ],
)
def test_the_same_answer(right: Any, said: str) -> None:
    assert scores("exact", [said], answer=[right]) == [1.0]


@pytest.mark.parametrize(
    "right, said",
    [
        ("42", "It is 42, I think."),  # the answer is not marked
        ("42", "421"),
        ("42", "4,2"),  # no thousands
        ("3", r"\boxed{4} or 3"),
        ("1/2", "1/3"),
        ("0", "1/0"),
        ("nan", "inf"),
        ("5", ""),
        ("yes", "no"),
        ("1e999999999", "2"),  # too large to be worked out
        (True, "1"),
    ],
)
def test_another_answer(right: Any, said: str) -> None:
    assert scores("exact", [said], answer=[right]) == [0.0]


def test_a_row_without_an_answer_is_not_scored() -> None:
    assert scores("exact", ["4", CHAT], {"column": "gold"}, gold=[None, 4]) == [None, 1.0]


def test_a_box_that_is_not_closed_is_no_answer() -> None:
    assert answer_in(r"\boxed{4") == r"\boxed{4"
    assert answer_in(r"a \boxed{x^{2}} b") == "x^{2}"


def test_a_pattern_is_searched_in_the_whole_response() -> None:
    assert scores("regex", ["so: aab", "none", CHAT], {"pattern": r"a{2}|#"}) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "said, score",
    [
        ("<think>two and two</think> 4", 1.0),
        ("\n<think>\na\nb\n</think>\n4", 1.0),
        ("4", 0.0),
        ("<think>a</think>", 0.0),  # no answer
        ("<think> </think>4", 0.0),  # no thought
        ("<think>a 4", 0.0),
        ("a <think>b</think> 4", 0.0),
        ("<think>a</think> 4 <think>b</think> 5", 0.0),
    ],
)
def test_one_block_of_thoughts_and_an_answer(said: str, score: float) -> None:
    assert scores("format", [said]) == [score]
    assert scores("format", [said.replace("think", "reason")], {"tag": "reason"}) == [score]


def test_a_band_of_lengths() -> None:
    """2 of at least 4 tokens are half of it, 20 of at most 10 twice as many."""
    ids = [[1] * n for n in (2, 4, 10, 20)]
    assert scores("length", ["a b"] * 4, {"min": "4", "max": "10"}, completion_ids=ids) == [0.5, 1.0, 1.0, 0.5]
    assert scores("length", ["a b", "a b c"], {"max": "2", "unit": "words"}, completion_ids=ids) == [1.0, 2 / 3]
    assert scores("length", ["abcd"], {"min": "8", "unit": "characters"}, completion_ids=ids) == [0.5]


def test_repeated_words_cost() -> None:
    """ "a b a b a": groups of two words ab, ba, ab, ba, of which two stood there before."""
    assert scores("repetition", ["a b A b a", "a b c d", "a", ""], {"words": "2"}) == [-0.5, 0.0, 0.0, 0.0]


def test_the_columns_of_a_check() -> None:
    assert check_columns("exact", {}) == (["answer"], [])
    assert check_columns("math", {"column": "gold"}) == (["gold"], [])
    assert check_columns("code", {}) == ([], ["tests"])
    assert check_columns("length", {}) == ([], [])


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is not None, reason="math-verify is installed")
def test_a_package_that_is_missing_is_named() -> None:
    assert option_problems("math", {}) == ["it needs the package math-verify: pip install 'rlhf-pipeline[math]'"]


def test_mathematics_that_is_equal() -> None:
    pytest.importorskip("math_verify")
    said = [r"So $\boxed{\frac{2}{4}}$", r"$\boxed{2}$", "It is $x+1$"]
    assert scores("math", said, answer=["0.5", "3", "$1+x$"]) == [1.0, 0.0, 1.0]
