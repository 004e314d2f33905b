"""A reward model on its own: conversations in its own tokens, the score at the last one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.models.loading import Loading, load_tokenizer
from rlhf.models.reward_model import RewardModel, load_reward_model
from rlhf.template import Message
from tests.helpers.ppo import SCORE_MEAN, SCORE_STD, save_reward_model

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
ASKED: list[Message] = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_reward_model(tmp_path_factory.mktemp("reward")))


def load(folder: str, *, max_length: int | None = None) -> RewardModel:
    return load_reward_model(Loading(folder, load_tokenizer(folder)), max_length=max_length)


def test_a_sequence_is_the_end_of_the_rendered_conversation(folder: str) -> None:
    model = load(folder)
    whole = model.template.tokenizer("Human: Why?\n\nAssistant: So.</s>", add_special_tokens=False)["input_ids"]
    assert model.sequence(ASKED, "So.", ended=True) == whole
    assert model.sequence(ASKED, "So.", ended=False) == whole[:-1]
    assert load(folder, max_length=7).sequence(ASKED, "So.", ended=True) == whole[-7:]
    assert model.max_length == 128  # by itself the model's own positions


def test_scores_are_the_head_at_the_last_token_whatever_stands_beside(folder: str) -> None:
    model = load(folder)
    sequences = [[5, 9, 2], [7, 44, 101, 3, 8, 60], [11]]
    plain: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        wanted = torch.cat([plain(input_ids=torch.tensor([ids])).logits[:, 0] for ids in sequences])
    found = model.scores(sequences).cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.normalise(found), (wanted - SCORE_MEAN) / SCORE_STD, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_no_sequences_have_no_scores(folder: str) -> None:
    """A rank whose share is empty takes part in the forward pass all the same."""
    assert load(folder).scores([]).shape == (0,)
