"""DPO, IPO and KTO against TRL 1.16's trainers, on the same models and the same batch.

`trl_preferences.json` is what `scripts/trl_preferences.py` got from TRL. Where step2_dpo differs on purpose: TRL
estimates KTO's z0 on each micro-batch of each rank, here it is that of the whole step, so they are compared on a step
that TRL takes in one micro-batch; and label smoothing is no option of TRL's sigmoid loss, so there it is put together
of two of its losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset

from data.batches import StepSampler
from data.rows import Rows
from data.stage_data import StageData
from rlhf.models.loading import load_tokenizer
from rlhf.template import Template
from scripts import trl_numbers, trl_preferences
from step2_dpo.config import DPOConfig
from step2_dpo.main import build_engine
from step2_dpo.pairs import Pairs
from step2_dpo.responses import Responses
from tests.helpers import engines
from tests.helpers.trl import save_reference

pytestmark = pytest.mark.usefixtures("one_rank")
TRL: dict[str, Any] = json.loads(Path(__file__).with_name("trl_preferences.json").read_text(encoding="utf-8"))
RATE = 1000.0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reference(tmp_path_factory.mktemp("reference"))


class InOrder(StepSampler):
    """All rows in one step, in their own order, as TRL takes them."""

    def rows(self, step: int) -> list[int]:
        return list(range(self.num_rows))


def data_of(kind: str) -> StageData:
    if kind == "KTO":
        rows = [
            {"prompt_ids": p, "prompt_length": len(p), "response_ids": r, "desirable": good, "length": len(p + r)}
            for p, r, good in trl_preferences.RESPONSES
        ]
    else:
        rows = [
            {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r, "margin": 0.0, "length": len(p) + max(len(c), len(r))}
            for p, c, r in trl_preferences.PAIRS
        ]
    found = Rows(Dataset.from_list([{**row, "source": 0} for row in rows]), ["batch"])
    report = {"train": {"fingerprint": kind}, "held_out": {"fingerprint": kind}, "margins": False}
    return StageData(found, found, report)


@pytest.mark.parametrize("micro_batch_size", [5, 2])
@pytest.mark.parametrize("name", trl_preferences.CASES)
def test_loss_rewards_and_gradients_are_those_of_trl(
    reference: Path, tmp_path: Path, name: str, micro_batch_size: int
) -> None:
    kind, _, settings = trl_preferences.CASES[name]
    wanted = TRL[name]
    config = DPOConfig(
        model=str(reference), output_dir=tmp_path, mini_batch_size=5, micro_batch_size=micro_batch_size,
        beta=trl_preferences.BETA, learning_rate=RATE, adam_eps=1.0, weight_decay=0.0, gradient_clipping=0.0,
        warmup_ratio=0.0, zero_stage=0, **settings,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(reference))
    with (
        mock.patch("step2_dpo.pairs.preferences", return_value=data_of(kind)),
        mock.patch("step2_dpo.responses.unpaired", return_value=data_of(kind)),
    ):
        learned = (Responses if kind == "KTO" else Pairs)(config, Template(tokenizer), 0)
    engine = build_engine(config, tokenizer, total_steps=10)
    sampler = InOrder(len(learned.data.train), 5, 0)
    learned.keep_reference(engine, sampler, 1)
    variant = dict(trl_numbers.build_model(2).named_parameters())
    with torch.no_grad():
        for weight, parameter in engine.module.lm.named_parameters():
            parameter.copy_(variant[weight])
    before = engines.weights(engine)

    rows = sampler.rows(0)
    baseline = learned.baseline(engine, 0, rows)
    assert baseline == pytest.approx(wanted.get("kl", 0.0), abs=2e-6)
    if kind == "KTO":
        assert baseline > 5e-3  # else nothing would tell it from none
    loss = 0.0
    for batch in learned.micro_batches(rows):
        micro_sum, _ = learned.losses(engine, batch, baseline)
        engine.backward(micro_sum, count=len(rows))
        loss += float(micro_sum.detach()) / len(rows)
    assert loss == pytest.approx(wanted["loss"], rel=1e-5)
    figures = learned.evaluate(engine)
    assert figures["dpo/eval_loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    if not config.is_averaged:  # TRL's rewards are sums, whatever the loss
        assert figures["dpo/chosen_reward"] == pytest.approx(wanted["chosen"], rel=1e-5, abs=1e-6)
        assert figures["dpo/rejected_reward"] == pytest.approx(wanted["rejected"], rel=1e-5, abs=1e-6)

    engine.step()
    steps = {n: (before[n] - after).double() / RATE for n, after in engines.weights(engine).items()}
    found = trl_numbers.summaries({n: step / (1 - step.abs()) for n, step in steps.items()})
    assert found.keys() == wanted["gradients"].keys()
    for weight, numbers in found.items():
        norm = wanted["gradients"][weight][0]
        assert numbers == pytest.approx(wanted["gradients"][weight], rel=1e-5, abs=1e-5 * max(norm, 1.0)), weight


@pytest.mark.parametrize("name", trl_preferences.CASES)
def test_trl_read_the_batch_that_is_compared(name: str) -> None:
    """Its tokenizer made the same ids of the texts, and added the end token."""
    if trl_preferences.CASES[name][0] == "KTO":
        wanted = [[*p, *r] for p, r, _ in trl_preferences.RESPONSES]
    else:
        wanted = [[*p, *r] for place in (1, 2) for p, r in ((row[0], row[place]) for row in trl_preferences.PAIRS)]
    found = [[token for token in row if token] for row in TRL[name]["input_ids"]]
    assert found == wanted
