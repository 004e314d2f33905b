"""A reward model of another tool serves in stage 3: its scale is measured once, on responses of the SFT actor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from rlhf.errors import ModelError
from step3_ppo import calibration
from step3_ppo.rollout import Rollout
from tests.helpers import stages
from tests.helpers.tiny import FAMILIES, save_tiny, tiny_tokenizer

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]


def save_foreign(folder: Path, *, scale: float = 3.0) -> Path:
    """A sequence classifier with one output as plain transformers saves it."""
    torch.manual_seed(7)
    config = FAMILIES["llama"]()
    config.num_labels = 1
    model: Any = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.score.weight.normal_().mul_(scale)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """The rollouts of the calibrations of this test."""
    made: list[Rollout] = []
    generate = calibration.generate

    def recorded(*args: Any, **kwargs: Any) -> Rollout:
        made.append(generate(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(calibration, "generate", recorded)
    return made


def test_mean_and_spread_are_those_of_the_actors_responses(
    tmp_path: Path, rollouts: list[Rollout], capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL's reward models have neither figure in their config.json. They were refused after the actor was loaded."""
    actor, foreign = save_tiny(tmp_path / "actor"), save_foreign(tmp_path / "foreign")
    result = stages.ppo(tmp_path / "out", actor, foreign, stages.write_pairs(tmp_path / "pairs.jsonl"), dtype="fp32")
    (rollout,) = rollouts
    plain: Any = hf.AutoModelForSequenceClassification.from_pretrained(foreign).eval()
    with torch.no_grad():
        sequences = [p + r for p, r in zip(rollout.prompts, rollout.responses, strict=True)]
        scores = torch.tensor([float(plain(input_ids=torch.tensor([ids])).logits) for ids in sequences]).double()
    kept = json.loads((tmp_path / "out" / calibration.NAME).read_text())
    assert kept["responses"] == len(rollout)
    assert kept["score_mean"] == pytest.approx(float(scores.mean()), abs=1e-5)
    assert kept["score_std"] == pytest.approx(float(scores.std(unbiased=False)), abs=1e-5)
    assert "the reward model is not from stage 2" in capsys.readouterr().out
    critic = json.loads((Path(result.models["critic"]) / "config.json").read_text())
    assert (critic["score_mean"], critic["score_std"]) == (kept["score_mean"], kept["score_std"])
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    normalised = (first["ppo/scores_mean"] - kept["score_mean"]) / kept["score_std"]
    penalty = 1.0 - first["ppo/eos_rate"]
    assert first["ppo/final_scores_mean"] == pytest.approx(normalised - penalty, abs=0.05)  # but for what is clipped


def test_a_resumed_run_keeps_the_figures(tmp_path: Path, rollouts: list[Rollout]) -> None:
    """Measured again, they would be those of an actor that has learned."""
    actor, foreign = save_tiny(tmp_path / "actor"), save_foreign(tmp_path / "foreign")
    pairs = stages.write_pairs(tmp_path / "pairs.jsonl")
    stages.ppo(tmp_path / "out", actor, foreign, pairs, save_every=1)
    before = (tmp_path / "out" / calibration.NAME).read_bytes()
    stages.ppo(tmp_path / "out", actor, foreign, pairs, save_every=1)
    assert len(rollouts) == 1
    assert (tmp_path / "out" / calibration.NAME).read_bytes() == before


def test_scores_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    actor, foreign = save_tiny(tmp_path / "actor"), save_foreign(tmp_path / "foreign", scale=0.0)
    with pytest.raises(ModelError, match=r"foreign: the reward model gives every response the same score \(0\.000\)"):
        stages.ppo(tmp_path / "out", actor, foreign, stages.write_pairs(tmp_path / "pairs.jsonl"))
    assert not (tmp_path / "out" / calibration.NAME).exists()
