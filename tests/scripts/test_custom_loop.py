"""A loop of one's own: the public pieces of stage 3, with a Python function in the place of the reward model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.template import Message, Template
from scripts import custom_loop
from step3_ppo.config import PPOConfig
from step3_ppo.passes import ForwardPasses
from step3_ppo.rewards.function import RewardFunction
from step3_ppo.roles import build_roles
from step3_ppo.rollout import Rollout, sequence_batch
from tests.helpers import ppo
from tests.helpers.tiny import save_tiny, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def settings(model: str, **changes: Any) -> PPOConfig:
    values: dict[str, Any] = {
        "actor_model": model, "critic_from": "actor", "iterations": 12, "rollout_batch_size": 16, "mini_batch_size": 16,
        "micro_batch_size": 16, "max_response_length": 8, "actor_learning_rate": 2e-2, "critic_learning_rate": 5e-3,
        "kl_coef": 0.0, "missing_eos_penalty": 0.0, "ppo_epochs": 2,
    }  # fmt: skip
    return PPOConfig(**(values | changes))


def rollout_of(template: Template, texts: list[str]) -> Rollout:
    messages: list[Message] = [{"role": "user", "content": "Say e."}]
    return Rollout(
        prompts=[template.prompt_ids(messages) for _ in texts],
        responses=[template.response_ids(text) for text in texts],
        sampler_logprobs=[[0.0] * len(template.response_ids(text)) for text in texts],
        stopped_B=torch.tensor([True] * len(texts)),
        messages=['[{"role": "user", "content": "Say e."}]'] * len(texts),
    )


@pytest.mark.slow
def test_the_score_rises(model: str) -> None:
    """The tiny model writes random bytes; paid for lower-case letters, it writes more of them."""
    scores: list[float] = []

    def letters(prompt: list[Message], response: str) -> float:
        assert prompt[0]["content"] in ("Say something.", "And now?")
        scores.append(sum(c.islower() for c in response) / 8)
        return scores[-1]

    custom_loop.train(settings(model), ["Say something.", "And now?"], letters)
    first, last = sum(scores[:32]) / 32, sum(scores[-32:]) / 32  # two iterations of 16
    assert last > first + 0.2, (first, last)


def test_the_function_sees_what_a_reader_would_see() -> None:
    """The messages of the prompt, and the response without end token and the template's space."""
    from rlhf.template import install_template

    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    template = Template(tokenizer)
    seen: list[tuple[list[Message], str]] = []
    scorer = RewardFunction(lambda prompt, response: seen.append((prompt, response)) or len(response))  # type: ignore[func-returns-value]
    rollout = rollout_of(template, ["one", "three", "x"])
    rows = [2, 0]
    scores_B = scorer.scores(rollout, rows, sequence_batch(rollout, rows, pad_token_id=0), template)
    assert scores_B.tolist() == [1.0, 3.0]
    assert seen == [([{"role": "user", "content": "Say e."}], text) for text in ("x", "one")]
    assert scorer.scores(rollout, [], sequence_batch(rollout, [], pad_token_id=0), template).shape == (0,)


def test_scores_count_as_they_are_normalised_and_clipped(model: str) -> None:
    """2, 4 and 40 with mean 2, std 2 and clip 5 → 0, 1 and 5; raw scores are reported as the function gave them."""
    config = settings(model, iterations=1)
    lengths = {"aa": 2.0, "aaaa": 4.0, "b": 40.0}
    scorer = RewardFunction(lambda prompt, response: lengths[response], score_mean=2.0, score_std=2.0)
    roles = build_roles(config, optimizer_steps=1, reward=scorer)
    measured = ForwardPasses(roles, config).measure(rollout_of(roles.actor.template, list(lengths)), 0)
    experience = ppo.learnable(measured, scorer, config, kl_coef=0.0)
    assert experience.scores_B.tolist() == [2.0, 4.0, 40.0]
    assert experience.final_scores_B.tolist() == [0.0, 1.0, 5.0]


def test_a_score_that_is_no_number_is_seen_as_such(model: str) -> None:
    config = settings(model, iterations=1)
    roles = build_roles(config, optimizer_steps=1, reward=RewardFunction(lambda prompt, response: math.nan))
    measured = ForwardPasses(roles, config).measure(rollout_of(roles.actor.template, ["a", "b"]), 0)
    assert not measured.is_finite()


def test_a_critic_cannot_start_from_a_reward_model_that_is_not_there(model: str) -> None:
    config = settings(model, critic_from="reward")
    with pytest.raises(ConfigError, match="use critic_from=actor"):
        build_roles(config, optimizer_steps=1, reward=RewardFunction(lambda prompt, response: 0.0))


@pytest.mark.process
def test_the_rewards_of_the_command_line_serve_as_well(model: str, tmp_path: Path) -> None:
    """As the script itself has them: a function of a file in TRL's signature, and a ready-made check."""
    (tmp_path / "mine.py").write_text(
        "def words(completions, **_):\n    return [len(c.split()) / 10 for c in completions]\n"
    )
    config = settings(model, iterations=1, reward=[f"{tmp_path / 'mine.py'}:words", "check:length,max=4:0.5"])
    roles = build_roles(config, optimizer_steps=2)
    rollout = rollout_of(roles.actor.template, ["a b c", "abc"])
    rollout.kept = ['{"text": true, "columns": {}}'] * 2
    measured = ForwardPasses(roles, config).measure(rollout, 0)
    lengths = [len(ids) for ids in map(rollout.said, range(2))]
    assert measured.parts["words"].tolist() == pytest.approx([0.3, 0.1])
    assert measured.parts["length"].tolist() == pytest.approx([min(1.0, 4 / n) for n in lengths])
    expected = [0.3 + 0.5 * min(1.0, 4 / lengths[0]), 0.1 + 0.5 * min(1.0, 4 / lengths[1])]
    assert measured.scores_B.tolist() == pytest.approx(expected)
    assert roles.critic is not None and not roles.critic.from_reward
    custom_loop.train(config, ["Say something."])


def test_the_script_is_as_short_as_it_says() -> None:
    lines = Path(custom_loop.__file__).read_text().splitlines()
    assert len(lines) < 70
