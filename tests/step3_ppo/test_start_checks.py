"""The checks of the first iteration: what they print, what they warn of, and which cause they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from step3_ppo.start_checks import check_start
from tests.helpers import stages
from tests.helpers.tiny import save_tiny

RIGHT = {"ppo/kl_k1": 0.0, "ppo/sampler_mismatch": 1e-8, "ppo/scores_mean": 0.5, "ppo/scores_std": 1.0}
IN_TRAINING_MODE = "the same weights give other probabilities in training mode"


@pytest.mark.parametrize(
    "changes, approx_kl, warnings",
    [
        ({}, 1e-7, []),
        ({}, 5e-4, [IN_TRAINING_MODE]),
        ({"ppo/kl_k1": -0.1}, 1e-7, ["KL to the reference, nats per token is 1.00e-01, above 1e-05: the roles do not"]),
        ({"ppo/kl_k1": 0.1}, 5e-4, ["KL to the reference", "(ρ = 1) is 5.00e-04, above 1e-05: the roles do not agree"]),
        ({"ppo/sampler_mismatch": 0.5}, 1e-7, ["sampler against training weights"]),
        ({}, None, []),
    ],
)
def test_a_check_that_fails_warns_and_names_its_cause(
    changes: dict[str, float], approx_kl: float | None, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """If only the first step is off, the roles agree in evaluation mode, so training mode makes the difference."""
    check_start(RIGHT | changes, {} if approx_kl is None else {"ppo/approx_kl": approx_kl}, torch.float32)
    out, err = capsys.readouterr()
    found = [line for line in (out + err).splitlines() if line.startswith("warning")]
    assert len(found) == len(warnings)
    assert all(part in line for part, line in zip(warnings, found, strict=True))
    assert ("approx_kl" in out) == (approx_kl is not None)


@pytest.mark.slow
def test_dropout_that_stays_on_is_named(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps an iteration: there was no such check then. gpt2 has dropout; here nobody switches it off."""
    monkeypatch.setattr("rlhf.models.loading.remove_dropout", lambda held: None)
    pairs = stages.write_pairs(tmp_path / "pairs.jsonl")
    base = save_tiny(tmp_path / "base", "gpt2")
    stages.reward(tmp_path / "reward", base, pairs)
    stages.ppo(tmp_path / "ppo", base, tmp_path / "reward/model", pairs, iterations=1)
    assert IN_TRAINING_MODE in "".join(capsys.readouterr())
