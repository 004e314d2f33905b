"""Failure modes are named by their signs, when they have lasted, and not over and over again."""

from __future__ import annotations

import re

import pytest

from step3_ppo.config import PPOConfig
from step3_ppo.diagnosis import REPEAT, Diagnosis

HEALTHY = {
    "ppo/kl": 2.0,
    "ppo/eos_rate": 0.98,
    "ppo/response_length": 20.0,
    "ppo/score_length_correlation": 0.1,
    "ppo/explained_variance": 0.4,
    "ppo/clipfrac": 0.05,
    "ppo/scores_std": 1.0,
    "ppo/entropy": 1.5,
    "ppo/sampler_mismatch": 0.001,
}


def told(change, iterations, **settings):
    diagnosis = Diagnosis(PPOConfig(**settings))
    return [diagnosis.look({**HEALTHY, **change}) for _ in range(iterations)]


def test_a_healthy_run_is_left_alone():
    assert told({}, 50) == [[]] * 50


@pytest.mark.parametrize(
    ("change", "settings", "lasting", "says"),
    [
        ({"ppo/kl": -0.2}, {"top_p": 0.9}, 1, "sampling leaves tokens out"),
        ({"ppo/kl": -0.8}, {}, 1, "differ from the trained ones"),
        ({"ppo/eos_rate": 0.0, "ppo/response_length": 32.0}, {"max_response_length": 32}, 1, "EOS is not learned"),
        ({"ppo/eos_rate": 0.3}, {}, 5, "30% of the responses end"),
        ({"ppo/score_length_correlation": 0.8}, {}, 3, r"reward rises with length \(r = 0.8\)"),
        ({"ppo/explained_variance": -0.5}, {}, 10, "the critic is not ready"),
        ({"ppo/kl": 13.0}, {"adaptive_kl_target": 6.0}, 5, "KL above 12 nats"),
        ({"ppo/kl": 60.0}, {}, 5, "KL above 50 nats"),
        ({"ppo/clipfrac": 0.5}, {}, 3, "50% of the tokens are clipped"),
        ({"ppo/scores_std": 0.0}, {}, 1, "the same score"),
        ({"ppo/entropy": 0.01}, {}, 5, "settled on one answer"),
        ({"ppo/sampler_mismatch": 0.02}, {}, 1, "0.020 in probability"),
    ],
)
def test_each_sign_is_named_once_it_has_lasted(change, settings, lasting, says):
    lines = told(change, lasting + 5, **settings)
    assert lines[: lasting - 1] == [[]] * (lasting - 1)
    assert len(lines[lasting - 1]) == 1
    assert re.search(says, lines[lasting - 1][0])
    assert lines[lasting:] == [[]] * 5


def test_without_a_critic_there_is_nothing_to_say_of_it():
    without = {name: value for name, value in HEALTHY.items() if name != "ppo/explained_variance"}
    assert Diagnosis(PPOConfig(advantage_estimator="reinforce_pp")).look(without) == []


def test_prompts_that_teach_nothing_are_named():
    """14 of 64 / 4 = 16 groups are 88%; after 5 iterations."""
    lines = told({"ppo/uniform_groups": 14.0}, 6, advantage_estimator="rloo", responses_per_prompt=4)
    assert [bool(line) for line in lines] == [False] * 4 + [True, False]
    assert lines[4][0].startswith("for 88% of the prompts all responses get the same score")
    assert told({"ppo/uniform_groups": 12.0}, 6, advantage_estimator="rloo", responses_per_prompt=4) == [[]] * 6


def test_with_a_ratio_of_sequences_these_are_clipped():
    lines = told({"ppo/clipfrac": 0.5}, 3, advantage_estimator="rloo", responses_per_prompt=4)
    assert lines[2][0].startswith("50% of the sequences are clipped")


def test_a_sign_that_stays_is_named_again_after_a_while():
    lines = told({"ppo/scores_std": 0.0}, REPEAT + 1)
    assert [bool(line) for line in lines] == [True, *[False] * (REPEAT - 1), True]


def test_an_iteration_without_the_sign_starts_the_count_anew():
    diagnosis = Diagnosis(PPOConfig())
    bad = {**HEALTHY, "ppo/clipfrac": 0.5}
    assert [diagnosis.look(m) for m in (bad, bad, HEALTHY, bad, bad)] == [[]] * 5
    assert diagnosis.look(bad)
