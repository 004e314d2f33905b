"""Both judges: a function of one's own, and a reward model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.errors import ConfigError, DataError
from rlhf.evaluate.judges import Asked, Response, reward_model_judge, scorer_judge
from rlhf.template import install_template
from tests.helpers.tiny import FAMILIES, tiny_tokenizer

ASKED = [Asked(1, [{"role": "user", "content": "hi"}]), Asked(4, [{"role": "user", "content": "Hello there"}])]


def test_a_scorer_is_a_function_of_prompt_and_response(scorer):
    judge = scorer_judge(f"{scorer}:length")
    assert judge(ASKED, [Response("abc", 4, True), Response("", 1, True)]) == [0.03, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_scorer", "write it as package.module:function"),
        ("my_scores:length", "there is no module my_scores"),
        ("my_scorer:size", "my_scorer has no function size"),
    ],
)
def test_a_scorer_that_is_not_there(scorer, name, message):
    with pytest.raises(ConfigError, match=message):
        scorer_judge(name)


def test_a_score_that_is_no_number_is_named_with_its_row(scorer):
    with pytest.raises(DataError, match="returned nan for the prompt in row 1"):
        scorer_judge(f"{scorer}:nothing")(ASKED, [Response("a", 1, True)] * 2)


def test_the_reward_model_reads_its_own_template_and_the_end_token_only_where_there_is_one(tmp_path: Path):
    """Each score is the head at the last token of the conversation, in units of the reward model's own spread."""
    torch.manual_seed(0)
    config = FAMILIES["llama"]()
    config.num_labels, config.score_mean, config.score_std = 1, 0.25, 2.0
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    judge = reward_model_judge(str(tmp_path), dtype="fp32", batch_size=2)
    scores = judge(ASKED, [Response("yes", 4, True), Response("no", 2, False)])
    for text, score in zip(["hi\n\nAssistant: yes</s>", "Hello there\n\nAssistant: no"], scores, strict=True):
        ids = tokenizer(f"Human: {text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            raw = model.score(model.model(input_ids=ids)[0])[0, -1, 0]
        assert score == pytest.approx((float(raw) - 0.25) / 2.0, abs=1e-5)
