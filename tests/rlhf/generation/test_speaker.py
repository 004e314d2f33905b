"""Who speaks: models have names of their own, and what cannot talk is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf import hardware
from rlhf.errors import ConfigError, ModelError
from rlhf.generation.speaker import labels, load_speaker, problems
from rlhf.training import distributed
from tests.helpers.fakes import make_model
from tests.helpers.tiny import save_tiny


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


def test_a_gpu_that_torch_cannot_use_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Chat and evaluation answered on the CPU, and nobody was told why it took so long."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(hardware, "accelerators", lambda: 1)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"1 GPU\(s\) are visible, but torch .* cannot use them"):
        load_speaker(str(tmp_path), label="x")


def test_a_model_that_does_not_fit_on_the_gpu_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """opt-66b ended with a traceback of torch: chat and evaluation use one GPU, and training had used eight."""
    monkeypatch.setattr(distributed, "on_gpu", lambda: True)
    monkeypatch.setattr(distributed, "gpu_has_bf16", lambda: True)
    monkeypatch.setattr(distributed, "free_memory", lambda: 1000)
    with pytest.raises(
        ModelError, match=r"its weights take 0\.0 GB in bfloat16, and the GPU has 0\.0 GB free; a model"
    ):
        load_speaker(str(save_tiny(tmp_path)), label="x")
