"""Rollouts of an actor with several end tokens: each ends a response, and a reward model reads the one it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.models.loading import Loading, load_tokenizer
from rlhf.models.reward_model import load_reward_model
from step3_ppo.main import sampling_of
from step3_ppo.rewards.function import RewardFunction
from step3_ppo.rewards.model import ModelReward
from step3_ppo.roles import Roles
from step3_ppo.rollout import Rollout, roll_out, sequence_batch
from step3_ppo.rollout_files import rollout_rows
from tests.helpers import ppo

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
OTHER = 30  # an ordinary token that the generation config lists as an end
MESSAGES = [json.dumps([{"role": "user", "content": "Why?"}])] * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = ppo.save_models(tmp_path_factory.mktemp("models"))
    path = Path(found["actor_model"]) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [OTHER, 2]}))
    return found


@pytest.fixture(scope="module")
def roles(models: dict[str, str]) -> Roles:
    return ppo.roles(ppo.config(models, min_response_length=2, inference_dtype="fp32"))


def rollout(roles: Roles, *ends: int) -> Rollout:
    """The same response, ended by each of `ends`."""
    template: Any = roles.actor.template
    prompt, said = template.prompt_ids(json.loads(MESSAGES[0])), template.response_ids("So. ", end=False)
    responses = [[*said, end] for end in ends]
    return Rollout(
        [prompt] * len(ends), responses, [[0.0] * len(r) for r in responses], torch.tensor([True] * len(ends)), MESSAGES
    )


def test_each_end_token_ends_a_response_but_not_too_early(models: dict[str, str], roles: Roles) -> None:
    """Only the template's end token ended responses, so text behind the actor's own end was scored and learned."""
    config = ppo.config(models, min_response_length=2, max_response_length=64)
    sampling = sampling_of(config, roles.actor)
    assert sampling.stop_token_ids == (2, OTHER)
    with roles.actor.hybrid.generating() as sampler:
        found = roll_out(
            sampler, [[5, 6, 7 + i] for i in range(64)], sampling, messages=MESSAGES * 32, seed=0, iteration=0
        )
    ends = {response[-1] for response, stopped in zip(found.responses, found.stopped_B, strict=True) if stopped}
    assert ends == {2, OTHER}
    for row, response in enumerate(found.responses):
        assert not {2, OTHER} & set(found.said(row))
        assert len(response) > 2
    batch = sequence_batch(found, range(64), pad_token_id=0)
    measured = roles.actor.logprobs(batch).logprobs_N.tolist()
    assert measured == pytest.approx([p for row in found.sampler_logprobs for p in row], abs=1e-4)


def test_no_end_token_has_a_probability_below_the_shortest_length(roles: Roles) -> None:
    fixed = Rollout([[5, 6]] * 2, [[OTHER, 7], [2, 7]], [[0.0, 0.0]] * 2, torch.tensor([False, False]), MESSAGES)
    logprobs = roles.actor.logprobs(sequence_batch(fixed, [0, 1], pad_token_id=0)).logprobs_N
    assert logprobs.isneginf().tolist() == [True, False, True, False]


def test_a_score_does_not_depend_on_which_end_token_was_drawn(models: dict[str, str], roles: Roles) -> None:
    """The reward model learned the template's end token; evaluation, which reads the text, gives it that one."""
    fixed = rollout(roles, 2, OTHER)
    batch = sequence_batch(fixed, [0, 1], pad_token_id=0)
    folder = models["reward_model"]
    model = load_reward_model(Loading(folder, load_tokenizer(folder)))
    text = roles.actor.template.text(fixed.said(1))
    wanted = model.scores([model.sequence(json.loads(MESSAGES[0]), text, ended=True)]).tolist() * 2
    for same in (True, False):
        found = ModelReward(model, same_tokenizer=same).scores(fixed, [0, 1], batch, roles.actor.template)
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_readers_see_what_was_said_without_its_end(roles: Roles) -> None:
    fixed = rollout(roles, OTHER, 2)
    batch = sequence_batch(fixed, [0, 1], pad_token_id=0)
    seen: list[str] = []

    def score(prompt: Any, response: str) -> float:
        seen.append(response)
        return 0.0

    RewardFunction(score).scores(fixed, [0, 1], batch, roles.actor.template)
    assert seen == ["So. ", "So. "]
    rows = rollout_rows(ppo.experience(fixed), roles.actor.template)
    assert [row["response"] for row in rows] == seen
    assert rows[1]["tokens"] == [" ", "S", "o", ".", " ", "</s>"]
