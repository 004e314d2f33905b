"""`python -m rlhf.evaluate --reward`: the rewards of stage 3 beside each other, on the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from rlhf.errors import ConfigError, ModelError
from rlhf.evaluate.comparison import summary
from rlhf.evaluate.evaluation import EvaluateConfig, evaluate
from tests.helpers.templates import EXACT
from tests.helpers.tiny import save_tiny
from tests.rlhf.models.test_classifier import save

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.process]
CODE = """
def even(prompts, completions, level, **_):
    assert all(isinstance(p, str) for p in prompts) and all(isinstance(c, str) for c in completions)
    return [float(n) if n % 2 == 0 else None for n in level]

def none(completions):
    return [None for _ in completions]

def turns(prompts, completions):
    return [float(len(p)) for p in prompts]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    rows = [{"prompt": f"What is {i}?", "level": i} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(folder: Path, model: str, *rewards: str, **changes: Any) -> EvaluateConfig:
    named = [reward.replace("mine.py", str(folder / "mine.py")) for reward in rewards]
    values = {
        "prompts": folder / "prompts.jsonl",
        "max_new_tokens": 4,
        "dtype": "fp32",
        "model": [f"a={model}"],
    } | changes
    return EvaluateConfig(reward=named, **values)


def test_each_reward_is_a_column(folder: Path, model: str) -> None:
    """Levels 0 to 3: `even` gives 0, nothing, 2, nothing; the sum counts nothing as 0. A part that scores no row
    is left out."""
    foreign = save(folder / "foreign", "bert")
    rewards = ("mine.py:even:0.5", "mine.py:none", "check:length,max=4", f"model:{foreign}:2")
    asked = config(folder, model, *rewards)
    result = evaluate(asked.model_copy(update={"model": [f"a={model}", f"b={model}"]}))
    score = result["models"][0]["reward"]
    assert list(score["parts"]) == ["even", "length", "foreign"]
    assert score["parts"]["even"]["mean"] == 1.0
    assert score["parts"]["length"]["mean"] == 1.0
    by_hand = 0.5 * (0 + 2) / 4 + 1.0 + 2 * score["parts"]["foreign"]["mean"]
    assert score["mean"] == pytest.approx(by_hand)
    assert result["models"][1]["reward"]["win_rate"]["mean"] == 0.5
    columns, rows = summary(result)
    assert columns == ["model", "reward", "wins", "even", "length", "foreign", "length", "ended"]
    assert rows[0][3] == "1.00"
    samples = [sample["responses"]["a"] for sample in result["samples"]]
    assert [sample["parts"].get("even") for sample in samples] == [0.0, None, 2.0, None]


def test_conversations_are_messages(folder: Path, model: str) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": turns}) + "\n")
    assert evaluate(config(folder, model, "mine.py:turns"))["models"][0]["reward"]["parts"]["turns"]["mean"] == 2.0


def test_what_is_wrong_is_told_before_a_model_is_loaded(folder: Path, model: str) -> None:
    two = save(folder / "two", "llama", labels=2)
    bare = save(folder / "bare", "llama", template=None)
    rewards = ("mine.py:evn", "check:exact,column=levle", "reward_model", f"model:{two}", f"model:{bare}", "check:code")
    with pytest.raises(ConfigError) as error:
        evaluate(config(folder, model, *rewards))
    told = "\n".join(error.value.problems)
    for words in (
        "check:code runs code that the model writes",
        "has no function 'evn'; did you mean 'even'?",
        "reward_model: here no stage 2 has made one",
        f"--reward model:{two}: is a classifier with 2 labels",
        f"--reward model:{bare}: its tokenizer has no chat template",
        f"reads the column 'levle', which {folder / 'prompts.jsonl'} does not have; did you mean 'level'?",
    ):
        assert words in told
    assert len(error.value.problems) == 6


def test_a_prompt_that_a_reward_model_cannot_read_is_told_before_models_answer(folder: Path, model: str) -> None:
    """The evaluation ended in the judge, after all models had answered all prompts."""
    strict = save(folder / "strict", "bert", template=EXACT["Gemma"])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": "Why?"}, {"prompt": turns}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (
        mock.patch("rlhf.evaluate.evaluation.load_speaker", side_effect=AssertionError("a model was loaded")),
        pytest.raises(ModelError) as error,
    ):
        evaluate(config(folder, model, f"model:{strict}"))
    assert str(error.value) == (
        f"--reward model:{strict}: {strict} cannot read the prompt of {folder / 'prompts.jsonl'}, row 2: the chat "
        "template cannot be rendered: no system turn"
    )
