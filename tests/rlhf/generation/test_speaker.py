"""Who speaks: models have names of their own, and what cannot talk is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.generation.speaker import labels, problems
from tests.helpers.fakes import make_model


def test_the_folder_of_a_run_is_answered_with_its_models(tmp_path: Path):
    actor = make_model(tmp_path / "step3_ppo" / "actor")
    assert problems(str(tmp_path), flag="MODEL") == [
        f"MODEL {tmp_path}: is the folder of a run; its chat models are {actor}"
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["out/step3_ppo/actor"], ["actor"]),
        (["out/step1_sft/model", "out/step3_ppo/actor"], ["model", "actor"]),
        (["a/step1_sft/model", "b/step1_sft/model"], ["a/step1_sft/model", "b/step1_sft/model"]),
        (["x/m", "x/m"], ["m (1)", "m (2)"]),
    ],
)
def test_models_get_the_shortest_names_that_tell_them_apart(names, expected):
    assert labels(names) == expected
