"""Advantages of each estimator: worked by hand, and properties that its source claims."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from rlhf.pipeline.config import PipelineConfig
from step3_ppo.advantages import shape_rewards
from step3_ppo.estimators import ESTIMATORS, Name, Rewarded, dr_grpo, grpo, reinforce_pp, rloo, uniform_groups

GROUPED: tuple[Name, ...] = ("rloo", "grpo", "dr_grpo")


def rewarded(scores: list[float], lengths: list[int], group_size: int, *, kl: Any = 0.0, kl_coef: float = 0.0) -> Any:
    """The final scores at the last token of responses of these lengths, less kl_coef · kl at every token."""
    mask_BR = torch.arange(max(lengths)) < tensor(lengths)[:, None]
    kl_BR = torch.where(mask_BR, torch.as_tensor(kl).expand(mask_BR.shape), 0.0)
    rewards_BR = shape_rewards(tensor(scores), kl_BR, mask_BR, kl_coef=kl_coef)
    return Rewarded(rewards_BR, mask_BR, group_size=group_size)


def of_rows(r: Rewarded, advantages_BR: Tensor) -> list[float]:
    """The advantage of each response, after a look that all its tokens have it and that no other place has one."""
    assert torch.equal(advantages_BR, advantages_BR[:, :1] * r.response_mask_BR)
    return advantages_BR[:, 0].tolist()


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("rloo", [2 / 3, -2 / 3, -2 / 3, 2 / 3]),  # 1 − (0 + 0 + 1)/3, 0 − (1 + 0 + 1)/3
        ("grpo", [0.8659, -0.8659, -0.8659, 0.8659]),  # 0.5 / (√(4 · 0.25 / 3) + 1e-4)
        ("dr_grpo", [0.5, -0.5, -0.5, 0.5]),
    ],
)
def test_a_group_of_four_by_hand(name: Name, wanted: list[float]) -> None:
    r = rewarded([1.0, 0.0, 0.0, 1.0], [3, 1, 2, 3], group_size=4)
    found = ESTIMATORS[name].estimate(r)
    assert of_rows(r, found.advantages_BR) == pytest.approx(wanted, abs=5e-5)
    assert found.returns_BR is None


def test_grpo_divides_by_the_standard_deviation_of_a_sample() -> None:
    """Of [1, 0, 0, 1]: √(1/3) = 0.57735, not the 0.5 of a population, and 1e-4 on top."""
    r = rewarded([1.0, 0.0, 0.0, 1.0], [1, 1, 1, 1], group_size=4)
    assert of_rows(r, grpo(r).advantages_BR)[0] == pytest.approx(0.5 / (1 / math.sqrt(3) + 1e-4), rel=1e-6)


def test_groups_of_two_and_scores_of_any_size_by_hand() -> None:
    """Groups (4, 1) and (−2, −2): rloo ±3, dr_grpo ±1.5, grpo 1.5 / (√4.5 + 1e-4) = 0.70707; the second group: 0."""
    r = rewarded([4.0, 1.0, -2.0, -2.0], [2, 1, 2, 1], group_size=2)
    assert of_rows(r, rloo(r).advantages_BR) == [3.0, -3.0, 0.0, 0.0]
    assert of_rows(r, dr_grpo(r).advantages_BR) == [1.5, -1.5, 0.0, 0.0]
    assert of_rows(r, grpo(r).advantages_BR) == pytest.approx([0.70707, -0.70707, 0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_equal_scores_teaches_nothing(name: Name) -> None:
    r = rewarded([1.0, 1.0, 1.0, 1.0], [1, 2, 3, 2], group_size=4)
    assert not ESTIMATORS[name].estimate(r).advantages_BR.any()


def test_the_kl_in_the_rewards_counts_summed_over_a_response() -> None:
    """Scores (1, 0), KL 0.5 at each of 3 and of 1 tokens, kl_coef 0.1: R = 1 − 0.15 and 0 − 0.05, so rloo ±0.9."""
    r = rewarded([1.0, 0.0], [3, 1], group_size=2, kl=0.5, kl_coef=0.1)
    assert of_rows(r, rloo(r).advantages_BR) == pytest.approx([0.9, -0.9])


def test_reinforce_pp_by_hand() -> None:
    """Score 1 and KL (1, −1) at its two tokens, kl_coef 0.1: rewards (−0.1, 1.1), sums from each token on (1.0, 1.1);
    score −1 and KL 0 at its one token: −1. Of 1.0, 1.1 and −1 the mean is 0.36667, the standard deviation 0.96724."""
    r = rewarded([1.0, -1.0], [2, 1], group_size=1, kl=tensor([[1.0, -1.0], [0.0, 0.0]]), kl_coef=0.1)
    found = reinforce_pp(r)
    assert found.returns_BR is not None
    torch.testing.assert_close(found.returns_BR, tensor([[1.0, 1.1], [-1.0, 0.0]]))
    wanted = [[0.65479, 0.75817], [-1.41296, 0.0]]
    assert found.advantages_BR.tolist() == [pytest.approx(row, abs=2e-5) for row in wanted]


def test_the_examples_of_the_docstrings() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    found = reinforce_pp(Rewarded(tensor([[-0.1, 0.9], [0.0, -1.0]]), mask))
    assert found.advantages_BR.tolist() == [
        pytest.approx([0.9452, 1.0532], abs=1e-4),
        pytest.approx([-0.9992, -0.9992], abs=1e-4),
    ]
    assert uniform_groups(tensor([1.0, 1.0, 1.0, 0.0]), 2).tolist() == [True, False]


@given(
    # in eighths, so that a spread is never so small that it is made of rounding
    scores=st.lists(st.integers(-40, 40).map(lambda eighths: eighths / 8), min_size=6, max_size=6),
    group_size=st.sampled_from([2, 3, 6]),
)
def test_the_three_baselines_are_one_but_for_a_factor(scores: list[float], group_size: int) -> None:
    """R less the mean of the others is K/(K − 1) times R less the mean of all, and grpo's is that over the spread; the
    advantages of a group always add up to 0."""
    r = rewarded(scores, [1] * 6, group_size)
    of_dr, of_rloo, of_grpo = (e(r).advantages_BR[:, 0].view(-1, group_size) for e in (dr_grpo, rloo, grpo))
    torch.testing.assert_close(of_rloo, of_dr * group_size / (group_size - 1), rtol=1e-4, atol=1e-5)
    spread = tensor(scores).view(-1, group_size).std(dim=1, keepdim=True) + 1e-4
    torch.testing.assert_close(of_grpo, of_dr / spread, rtol=1e-4, atol=1e-4)
    for found in (of_dr, of_rloo, of_grpo):
        torch.testing.assert_close(found.sum(dim=1), torch.zeros(6 // group_size), rtol=0, atol=1e-4)


def test_the_leave_one_out_baseline_is_unbiased() -> None:
    """Ahmadian et al.'s claim: the others' scores say nothing of one's own, so the estimate of a bandit's gradient has
    the true mean. Four actions with rewards 1, 0, 0, 3 and logits of a softmax policy."""
    generator = torch.Generator().manual_seed(0)
    policy, reward = tensor([0.4, 0.1, 0.2, 0.3]), tensor([1.0, 0.0, 0.0, 3.0])
    true = policy * (reward - (policy * reward).sum())
    actions = torch.multinomial(policy, 400_000, replacement=True, generator=generator)
    r = Rewarded(reward[actions][:, None], torch.ones(len(actions), 1, dtype=torch.bool), group_size=4)
    slopes = torch.nn.functional.one_hot(actions, 4) - policy  # of log policy(action)
    torch.testing.assert_close((rloo(r).advantages_BR * slopes).mean(dim=0), true, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "gae"])
def test_places_that_do_not_count_change_nothing(name: Name) -> None:
    r = rewarded([1.0, -2.0, 0.5, 3.0], [3, 1, 2, 3], group_size=2)
    wider = Rewarded(
        torch.nn.functional.pad(r.rewards_BR, (0, 4)), torch.nn.functional.pad(r.response_mask_BR, (0, 4)), group_size=2
    )
    found, padded = (ESTIMATORS[name].estimate(each).advantages_BR for each in (r, wider))
    torch.testing.assert_close(padded[:, :3], found)
    assert not padded[:, 3:].any()


def test_uniform_groups_are_those_of_equal_scores() -> None:
    """Within 1e-6, which is what other kernels may do to a score; a score that is not a number is no agreement."""
    scores = tensor([2.0, 2.0 + 5e-7, 1.0, 1.0001, math.nan, 1.0])
    assert uniform_groups(scores, 2).tolist() == [True, False, False]


def test_every_estimator_has_a_flag() -> None:
    """train.py lists the names itself, because the pipeline knows no stage."""
    (of_flag, _) = get_args(PipelineConfig.model_fields["advantage_estimator"].annotation)
    assert get_args(of_flag) == get_args(Name) == tuple(ESTIMATORS)


def test_an_estimator_of_ones_own_as_docs_extending_has_it() -> None:
    r = rewarded([1.0, 3.0, 2.0], [2, 1, 3], group_size=3)
    found_PK = r.of_groups
    best_PK = found_PK == found_PK.amax(dim=1, keepdim=True)
    worst_PK = found_PK == found_PK.amin(dim=1, keepdim=True)
    assert of_rows(r, r.everywhere(best_PK.float() - worst_PK.float())) == [-1.0, 1.0, 0.0]
