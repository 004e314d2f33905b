"""Several rewards with weights as one scorer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from rlhf.errors import DataError
from rlhf.rewards.functions import Asked, Functions
from rlhf.template import Template, install_template
from step3_ppo.rewards.model import ModelReward
from step3_ppo.rewards.weighted import Part, WeightedRewards
from step3_ppo.rollout import Rollout, sequence_batch
from tests.helpers.tiny import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")


class Fake(Functions):
    """Functions of this process: name → what it returns for a row."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__([], seconds=1.0)
        self.found, self.asked, self.states = found, [], []  # type: ignore[var-annotated]

    def scores(self, name: str, asked: Any, *, state: Any = None) -> Any:
        self.asked.append(asked)
        self.states.append(state)
        return [self.found[name](each) for each in asked]


class Model(ModelReward):
    """A reward model that scores a response by its length, mean 2 and spread 4."""

    def __init__(self) -> None:
        self.score_mean, self.score_std, self.is_calibrated, self.name = 2.0, 4.0, True, "lengths"
        self.rows: list[int] = []

    def scores(self, rollout: Any, rows: Any, batch: Any, actor_template: Any) -> torch.Tensor:
        self.rows += list(rows)
        return torch.tensor([float(len(rollout.said(row))) for row in rows])


@pytest.fixture
def template() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


def rollout_of(template: Template, *texts: str, kept: list[str] | None = None) -> Rollout:
    responses = [template.response_ids(text) for text in texts]
    return Rollout(
        prompts=[[5, 6]] * len(texts),
        responses=responses,
        sampler_logprobs=[[0.0] * len(r) for r in responses],
        stopped_B=torch.tensor([True] * len(texts)),
        messages=[json.dumps([{"role": "user", "content": f"question {i}"}]) for i in range(len(texts))],
        kept=kept or [],
    )


def table_of(rewards: WeightedRewards, rollout: Rollout, template: Template, *parts: list[int]) -> torch.Tensor:
    rewards.ask(rollout, template, iteration=2)
    table = torch.full((len(rollout), len(rewards.parts)), 99.0)
    for rows in parts:
        table[rows] = rewards.scores(rollout, rows, sequence_batch(rollout, rows, pad_token_id=0), template)
    return table


def test_the_weighted_sum_of_normalised_scores(template: Template) -> None:
    """By hand, clip 5: responses of 2, 6 and 30 bytes. The model gives 0, 1 and (7 clipped to) 5 normalised, times 2; f
    gives 1, nothing, and (−9 clipped to) −5, times 0.5."""
    values = {"aa": 1.0, "b" * 6: None, "c" * 30: -9.0}
    model = Model()
    parts = [Part("m", 2.0, model), Part("f", 0.5)]
    rewards = WeightedRewards(parts, Fake({"f": lambda a: values[a.response]}), clip=5.0)
    rollout = rollout_of(template, *values)
    table = table_of(rewards, rollout, template, [2, 0], [1], [])
    assert model.rows == [2, 0, 1]
    lengths = [float(len(rollout.said(row))) for row in range(3)]
    assert table[:, 0].tolist() == lengths
    assert table[[0, 2], 1].tolist() == [1.0, -9.0]
    assert math.isnan(table[1, 1])
    model.score_mean, model.score_std = lengths[0], lengths[1] - lengths[0]  # so that the three are 0, 1 and far
    assert rewards.total(table).tolist() == [0.5, 2.0, 10.0 - 2.5]


def test_a_score_of_a_model_that_is_not_finite_stays_so(template: Template) -> None:
    rewards = WeightedRewards([Part("m", 1.0, Model()), Part("f", 1.0)], Fake({}), clip=5.0)
    total = rewards.total(torch.tensor([[math.nan, 1.0], [2.0, math.nan]]))
    assert math.isnan(total[0])
    assert total[1] == 0.0


def test_functions_see_the_whole_rollout_once(template: Template) -> None:
    """However it is cut into micro-batches: a function may compare responses with each other."""
    kept = [json.dumps({"text": i == 0, "columns": {"level": i}}) for i in range(3)]
    rollout = rollout_of(template, "one", "two", "three", kept=kept)
    functions = Fake({"f": lambda a: 1.0})
    rewards = WeightedRewards([Part("f", 1.0)], functions, clip=5.0, iterations=7)
    table_of(rewards, rollout, template, [0], [1, 2])
    (asked,) = functions.asked
    assert [a.response for a in asked] == ["one", "two", "three"]
    assert [a.columns for a in asked] == [{"level": 0}, {"level": 1}, {"level": 2}]
    assert asked[0].prompt == "question 0"
    assert asked[0].completion == "one"
    assert asked[1].prompt == [{"role": "user", "content": "question 1"}]
    assert asked[1].completion == [{"role": "assistant", "content": "two"}]
    assert asked[0].response_ids == rollout.said(0)
    assert functions.states == [{"global_step": 2, "max_steps": 7}]


def test_a_row_that_no_function_scores_is_named(template: Template) -> None:
    found = {"f": lambda a: None, "g": lambda a: None if a.response == "b" else 1.0}
    rewards = WeightedRewards([Part("f", 1.0), Part("g", 1.0)], Fake(found), clip=5.0)
    with pytest.raises(DataError, match=r"iteration 3, row 2 \('question 1'\): no reward scores this row \(f, g ret"):
        rewards.ask(rollout_of(template, "a", "b"), template, iteration=2)
    beside_a_model = WeightedRewards([Part("f", 1.0), Part("m", 1.0, Model())], Fake(found), clip=5.0)
    beside_a_model.ask(rollout_of(template, "a", "b"), template, iteration=2)


def test_scores_that_are_clipped_are_told_once(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """A function that returns 0 to 100 would teach nothing above 5, and nobody would know."""
    rewards = WeightedRewards([Part("f", 1.0)], Fake({"f": lambda a: 100.0 if a.response == "a" else 1.0}), clip=5.0)
    for _ in range(2):
        rewards.ask(rollout_of(template, "a", "b"), template, iteration=0)
    output = capsys.readouterr()
    assert (output.out + output.err).count("1 of 2 scores of f lie beyond ±5") == 1


def test_what_a_function_gets_is_the_text_that_a_reader_sees(template: Template) -> None:
    seen: list[Asked] = []
    rewards = WeightedRewards([Part("f", 1.0)], Fake({"f": lambda a: seen.append(a) or 1.0}), clip=5.0)
    rewards.ask(rollout_of(template, " x "), template, iteration=0)
    assert seen[0].response == template.text(template.response_ids(" x ", end=False))
    assert not seen[0].is_text
