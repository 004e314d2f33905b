"""An evaluation that has been made is shown again, whatever way its files are spelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.evaluate.evaluation import EvaluateConfig
from rlhf.pipeline.evaluation import _evaluated_before


def test_the_home_in_a_recipe_is_that_of_the_earlier_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result holds the path that `~` stands for; compared with the recipe's text it would always be another."""
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = {"prompts": "~/prompts.jsonl", "max_prompts": 3}
    result = {
        "settings": EvaluateConfig.model_validate(recipe).model_dump(mode="json", exclude={"model", "output"}),
        "models": [{"label": "sft", "model": "out/model"}],
    }
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(result))
    assert _evaluated_before(path, recipe, {"sft": "out/model"}) == result
    assert _evaluated_before(path, {**recipe, "prompts": "~/others.jsonl"}, {"sft": "out/model"}) is None
    assert _evaluated_before(path, {**recipe, "max_prompts": 4}, {"sft": "out/model"}) is None
