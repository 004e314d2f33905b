"""Both judges: a function of one's own, and a reward model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.errors import ConfigError, DataError
from rlhf.evaluate.judges import Asked, Response, Scores, reward_model_judge, scorer_judge
from rlhf.template import Template, install_template
from tests.helpers.ppo import SCORE_MEAN, SCORE_STD, save_reward_model
from tests.helpers.tiny import FAMILIES, tiny_tokenizer

ASKED = [Asked(1, [{"role": "user", "content": "hi"}]), Asked(4, [{"role": "user", "content": "Hello there"}])]


def test_a_scorer_is_a_function_of_prompt_and_response(scorer):
    judge = scorer_judge(f"{scorer}:length")
    assert judge(ASKED, [Response("abc", 4, True), Response("", 1, True)]) == Scores([0.03, 0.0])


def test_a_scorer_may_name_the_parts_of_its_score(scorer):
    judge = scorer_judge(f"{scorer}:parts")
    scores = judge(ASKED, [Response("abc", 4, True), Response("", 1, True)])
    assert scores == Scores([0.03, 0.0], {"short": [0.0, 1.0], "asked": [2.0, 11.0]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("without_score", "for the prompt in row 1, without 'score'"),
        ("wordy", "for the prompt in row 1, with 'yes' for 'short', not a number"),
        ("nameless", "for the prompt in row 1, with the part '', which is not a name"),
        ("fickle", r"for the prompt in row 4, not the same parts as before \(score, a\)"),
    ],
)
def test_parts_that_no_table_could_show_are_named_with_their_row(scorer, name, message):
    with pytest.raises(DataError, match=message):
        scorer_judge(f"{scorer}:{name}")(ASKED, [Response("a", 1, True), Response("b", 1, True)])


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
    scores = judge(ASKED, [Response("yes", 4, True), Response("no", 2, False)]).values
    for text, score in zip(["hi\n\nAssistant: yes</s>", "Hello there\n\nAssistant: no"], scores, strict=True):
        ids = tokenizer(f"Human: {text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            raw = model.score(model.model(input_ids=ids)[0])[0, -1, 0]
        assert score == pytest.approx((float(raw) - 0.25) / 2.0, abs=1e-5)


def test_drawn_ids_are_scored_where_the_tokenizers_agree(tmp_path: Path):
    """Half of a character has no text: read from the text, a response got another score than in stage 3."""
    save_reward_model(tmp_path)
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    template = Template(tokenizer)
    drawn = template.response_ids("好", end=False)[:-1]
    judge = reward_model_judge(str(tmp_path), dtype="fp32", batch_size=2)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        ids = [*template.prompt_ids(ASKED[0].messages), *drawn]
        raw = model.score(model.model(input_ids=torch.tensor([ids]))[0])[0, -1, 0]
    response = Response(template.text(drawn), 3, False, drawn, template)
    assert judge(ASKED[:1], [response]).values == [pytest.approx((float(raw) - SCORE_MEAN) / SCORE_STD, abs=1e-5)]
    tokenizer.chat_template = str(tokenizer.chat_template).replace("Human", "User")
    other = replace(response, template=Template(tokenizer))
    assert (
        judge(ASKED[:1], [other])
        == judge(ASKED[:1], [Response(response.text, 3, False)])
        != judge(ASKED[:1], [response])
    )
