"""The arithmetic demo's data: workings that forget carries, right answers, and held-out sums that no text works."""

from __future__ import annotations

import re
from itertools import islice, pairwise
from random import Random
from typing import Any

import pytest

from data.demo import sums
from data.demo.sums import SLIPS, TRAINING, asked, carries, held_out_rows, training_rows, working
from rlhf.rewards.checks import exact


@pytest.mark.parametrize(
    ("a", "b", "columns"), [(40, 80, 0), (95, 17, 1), (95, 4 + 10, 0), (478, 365, 2), (455, 545, 2), (9999, 9999, 3)]
)
def test_carries_are_counted_where_a_column_gets_one(a: int, b: int, columns: int) -> None:
    """What the first column carries on is part of the answer, and cannot be forgotten."""
    assert carries(a, b) == columns


def test_a_working_without_mistakes_is_right_for_every_kind_of_sum() -> None:
    random = Random(0)
    for a, b in [(10, 10), (99, 99), (455, 545), (1009, 9991), *asked(0)[1]]:
        steps, _, answer = working(a, b, random, forgets=0, slips=0).partition(" #### ")
        assert int(answer) == a + b
        for step in steps.split():  # 7+6=13+1=14
            assert all(eval(said) == int(then.partition("+")[0]) for said, then in pairwise(step.split("=")))
    assert working(478, 365, random, forgets=0, slips=0) == "8+5=13 7+6=13+1=14 4+3=7+1=8 #### 843"
    assert working(478, 365, random, forgets=1, slips=0) == "8+5=13 7+6=13 4+3=7 #### 733"


def test_a_slip_changes_a_column_and_what_follows_from_it() -> None:
    assert working(10, 10, Random(0), slips=1) in ("0+0=1 1+1=1 #### 11", "0+0=1 1+1=3 #### 31")
    for seed in range(50):
        answer = int(working(99, 99, Random(seed), forgets=0, slips=1).partition("#### ")[2])
        assert answer != 198


def check(rows: list[dict[str, str]]) -> list[Any]:
    right = [row["solution"] for row in rows]
    return exact(column="solution")(completions=[row["response"] for row in rows], solution=right)


def test_demonstrations_are_right_less_often_than_the_base_model_may_be() -> None:
    """The demo shows that a check alone leads beyond what was imitated: from under 30%."""
    rows = list(training_rows(0))
    assert len(rows) == TRAINING
    for digits, least, most in ((2, 0.2, 0.35), (3, 0.1, 0.3)):
        scores = check([row for row in rows if len(row["prompt"]) == 2 * digits + 3])
        assert least < sum(scores) / len(scores) < most
    assert sum(check(rows)) / len(rows) < 0.3
    assert all(eval(row["prompt"]) == int(row["solution"]) for row in rows)


def test_no_held_out_sum_is_trained_on_in_either_order() -> None:
    for seed in (0, 1):
        held_out = {frozenset(map(int, row["prompt"].split(" + "))) for row in held_out_rows(seed)}
        training = {frozenset(map(int, row["prompt"].split(" + "))) for row in training_rows(seed)}
        assert len(held_out) == sums.HELD_OUT
        assert not held_out & training
    assert set(next(held_out_rows(0))) == {"prompt", "solution"}
    assert all(carries(*pair) for part in asked(0) for pair in part)


def test_no_pretraining_text_works_a_held_out_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sums of two digits alone, most of the few that there are come up; those that are held out must not."""
    from rlhf.template import Template
    from scripts.pretrain_sums import SumsSettings, make_tokenizer

    template = Template(make_tokenizer(SumsSettings()))
    monkeypatch.setattr(sums, "DIGITS", (2,))
    monkeypatch.setattr(sums, "TRAINING", 500)
    held_out = {frozenset(pair) for pair in asked(3)[1]}
    texts = list(islice(sums.texts(template, 3), 8000))
    said = {frozenset(map(int, pair)) for text in texts for pair in re.findall(r"(\d+) \+ (\d+)", text)}
    assert len(said) > 2000
    assert not said & held_out
    [a, b] = map(int, re.findall(r"Human: (\d+) \+ (\d+)", texts[0])[0])
    prompt = template.render([{"role": "user", "content": f"{a} + {b}"}])
    assert texts[0].startswith(prompt)
    assert texts[0].endswith(template.end_token)


def test_slips_are_rare() -> None:
    """Otherwise right answers would be rare whatever is carried, and the check would have little to tell."""
    assert (1 - SLIPS) ** max(sums.DIGITS) > 0.9
