"""`--reward` as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.rewards.names import parse


def one(spec: str) -> tuple[str, str, str, dict[str, str], float, str]:
    (reward, _), problems = parse([spec, "other.py:other"])
    assert problems == []
    return reward.kind, reward.target, reward.function, dict(reward.options), reward.weight, reward.name


@pytest.mark.parametrize(
    "spec, meant",
    [
        ("my/rewards.py:accuracy", ("function", "my/rewards.py", "accuracy", {}, 1.0, "accuracy")),
        ("rewards.py:accuracy:0.5", ("function", "rewards.py", "accuracy", {}, 0.5, "accuracy")),
        ("model:org/reward-1.5b", ("model", "org/reward-1.5b", "", {}, 1.0, "reward-1.5b")),
        ("model:org/reward:2e-1", ("model", "org/reward", "", {}, 0.2, "reward")),
        ("model:output/step2_reward/model/:0", ("model", "output/step2_reward/model/", "", {}, 0.0, "model")),
        ("check:exact", ("check", "exact", "", {}, 1.0, "exact")),
        (
            "check:length,min=20,max=100:0.1",
            ("check", "length", "", {"min": "20", "max": "100"}, 0.1, "length"),
        ),
        (r"check:regex,pattern=^a{1,3}$", ("check", "regex", "", {"pattern": "^a{1,3}$"}, 1.0, "regex")),
        (r"check:regex,pattern=(?:so|thus):2", ("check", "regex", "", {"pattern": "(?:so|thus)"}, 2.0, "regex")),
        (r"check:regex,pattern=(?:so)", ("check", "regex", "", {"pattern": "(?:so)"}, 1.0, "regex")),
        ("reward_model", ("reward_model", "", "", {}, 1.0, "reward_model")),
        ("reward_model:0.3", ("reward_model", "", "", {}, 0.3, "reward_model")),
    ],
)
def test_what_a_reward_means(spec: str, meant: tuple[str, str, str, dict[str, str], float, str]) -> None:
    assert one(spec) == meant


@pytest.mark.parametrize(
    "spec, problem",
    [
        ("my.py", "write it as FILE.py:FUNCTION, model:FOLDER_OR_HUB_NAME, check:NAME or reward_model"),
        ("my.txt:f", "write it as FILE.py:FUNCTION"),
        ("exact", "did you mean 'check:exact'?"),
        ("modle:org/name", "did you mean 'model'?"),
        ("my.py:", "'' is not the name of a function"),
        ("my.py:a.b", "'a.b' is not the name of a function"),
        ("my.py:f:heavy", "the weight 'heavy' is not a number"),
        ("my.py:f:-1", "the weight -1 must be 0 or more"),
        ("my.py:f:nan", "the weight nan must be 0 or more"),
        ("my.py:f:inf", "the weight inf must be 0 or more"),
        ("my.py:f:", "the weight '' is not a number"),
        ("model:", "name a folder or a model of the hub"),
        ("model:org/name:half", "the weight 'half' is not a number"),
        ("reward_model:x", "the weight 'x' is not a number"),
        ("check:exct", "there is no check 'exct', only exact, math, .*did you mean 'exact'"),
        ("check:exact:x", "the weight 'x' is not a number"),
        ("check:length,mim=3", "it has no option 'mim', only min, max, unit; did you mean 'min'"),
        ("check:length,3", "write its options as check:length,NAME=VALUE, not '3'"),
        ("check:length,min=3,min=4", "the option min is given twice"),
        ("check:length,min=few", "min=few is not a whole number"),
        ("check:length,min=-2", "min=-2 must be above 0"),
        ("check:length,min=5,max=4", "min=5 is above max=4"),
        ("check:length", "it needs min=…, max=… or both"),
        ("check:length,max=4,unit=pages", "unit=pages is not one of tokens, words, characters"),
        ("check:regex", "it needs pattern=…"),
        ("check:regex,pattern=(", "pattern is not a regular expression: missing"),
        ("check:repetition,words=0", "words=0 must be above 0"),
    ],
)
def test_what_cannot_be_understood_is_one_line(spec: str, problem: str) -> None:
    found, problems = parse([spec])
    assert found == []
    assert len(problems) == 1
    assert problems[0].startswith(f"--reward {spec}")
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(problems[0])


def test_names_are_unique() -> None:
    found, problems = parse(["a.py:f", "b.py:f", "check:regex,pattern=a", "check:regex,pattern=b", "a.py:g"])
    assert not problems
    assert [reward.name for reward in found] == ["f", "f-2", "regex", "regex-2", "g"]


def test_a_reward_that_is_given_twice_is_refused() -> None:
    """Its two weights would be two metrics of the same number."""
    assert "is given twice" in parse(["a.py:f", "a.py:f:2"])[1][0]


def test_weights_that_are_all_zero_are_refused() -> None:
    assert "all weights are 0" in parse(["a.py:f:0", "a.py:g:0"])[1][0]
    assert parse(["a.py:f:0", "a.py:g"])[1] == []


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run:2"
    folder.mkdir()
    (reward,), problems = parse([f"model:{folder}"])
    assert not problems
    assert (reward.target, reward.weight, reward.name) == (str(folder), 1.0, "run_2")
