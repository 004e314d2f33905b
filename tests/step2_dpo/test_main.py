"""DPO on a tiny model: it learns the pairs, its step is the formula, and its reference is worked out once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import step2_dpo.reference
from data.config import DataSettings
from data.stage_data import preferences
from rlhf.errors import DataError
from rlhf.json_lines import read_json_lines
from rlhf.metrics import read_metrics
from rlhf.models.loading import load_tokenizer
from rlhf.template import Template
from step2_dpo.config import DPOConfig
from step2_dpo.loss import dpo_losses, ipo_losses
from step2_dpo.reference import FILE_NAME
from tests.helpers import engines, stages
from tests.helpers.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("one_rank")
# one step on all of 6 pairs
SMALL: dict[str, Any] = {"mini_batch_size": 6, "max_samples": 6, "max_steps": 1, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stages.write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def rows_of(base: Path, pairs: str, **changes: Any) -> Any:
    """The stage's data, through the data layer alone: stage 2 with the prompts of stage 3."""
    known = {k: v for k, v in {**stages.BATCHES, **changes}.items() if k in DataSettings.model_fields}
    settings = DataSettings(**{**known, "data_path": [pairs], "data_split": "1,2,0"})
    return preferences(settings, Template(load_tokenizer(str(base))))


def logprobs(model: Any, row: Any, name: str) -> torch.Tensor:
    """Log-probabilities of the tokens of a response, from the whole table of logits, one row at a time."""
    ids = torch.tensor([[*row["prompt_ids"], *row[name]]])
    table = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return table.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :, 0]


def by_hand(model: Any, reference: Any, rows: Any, config: DPOConfig) -> torch.Tensor:
    """The mean loss over the pairs."""
    losses = []
    for row in (rows[i] for i in range(len(rows))):
        ratios = []
        for name in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                ref = logprobs(reference, row, name)
            new = logprobs(model, row, name)
            ratios.append((new - ref).mean() if config.is_averaged else (new - ref).sum())
        z = config.beta * (ratios[0] - ratios[1])
        smoothing = config.label_smoothing
        losses.append(
            ipo_losses(z, beta=config.beta) if config.loss == "ipo" else dpo_losses(z, label_smoothing=smoothing)
        )
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "settings",
    [{}, {"label_smoothing": 0.2}, {"length_normalised": True}, {"loss": "ipo", "beta": 0.5}],
    ids=["dpo", "smoothed", "normalised", "ipo"],
)
def test_two_steps_are_the_formula_whatever_the_micro_batches(
    settings: dict[str, Any], base: Path, pairs: str, tmp_path: Path
) -> None:
    """AdamW's second step depends on both gradients, and at the second one policy and reference differ."""
    values = {**SMALL, **settings, "max_steps": 2, "epochs": 2, "lr_schedule": "constant", "adam_eps": 1e-3}
    for size in (6, 4, 1):
        stages.dpo(tmp_path / str(size), base, pairs, micro_batch_size=size, **values)
    config = DPOConfig(**settings)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    reference: Any = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    wanted = []
    for _ in range(2):
        loss = by_hand(model, reference, rows_of(base, pairs, **SMALL).train, config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wanted.append(float(loss.detach()))
    for size in (6, 4, 1):
        metrics = read_metrics(tmp_path / str(size) / "metrics.jsonl")[1:]
        assert [row["dpo/loss"] for row in metrics] == pytest.approx(wanted, rel=1e-4)
        saved = load_file(tmp_path / str(size) / "model/model.safetensors")
        assert engines.furthest(saved, {name: model.state_dict()[name] for name in saved}) < 2e-5


def test_it_learns_the_pairs(base: Path, pairs: str, tmp_path: Path) -> None:
    """All rude answers lose against polite ones on held-out pairs; at the start policy and reference are one."""
    result = stages.dpo(tmp_path, base, pairs, learning_rate=3e-3, max_steps=None, epochs=3)
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert first["dpo/eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["dpo/margin"] == pytest.approx(0.0, abs=1e-5)
    assert first["dpo/kl"] == pytest.approx(0.0, abs=1e-5)
    assert last["dpo/accuracy"] == 1.0
    assert last["dpo/eval_loss"] < 0.3
    assert last["dpo/kl"] > 0.1
    assert last["dpo/chosen_reward"] > last["dpo/rejected_reward"]
    assert result.metrics["dpo/accuracy"] == last["dpo/accuracy"]
    assert result.models == {"dpo": str(tmp_path / "model")}


def test_figures_are_those_of_the_exported_model(base: Path, pairs: str, tmp_path: Path) -> None:
    stages.dpo(tmp_path, base, pairs, learning_rate=3e-3, beta=0.2)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    reference: Any = AutoModelForCausalLM.from_pretrained(base)
    rows, margins, kl = rows_of(base, pairs).held_out, [], []
    for row in (rows[i] for i in range(len(rows))):
        rewards = []
        for name in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                change = logprobs(model, row, name) - logprobs(reference, row, name)
            rewards.append(0.2 * float(change.sum()))
            kl.append(float(change.square().sum()) / 2)
        margins.append(rewards[0] - rewards[1])
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["dpo/margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert last["dpo/accuracy"] == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert last["dpo/kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-3)


def test_with_adapters_the_reference_is_the_model_without_them(base: Path, pairs: str, tmp_path: Path) -> None:
    """Only adapters learn, and the kept log-probabilities are those of the stage-1 model."""
    stages.dpo(tmp_path / "lora", base, pairs, lora_rank=2, lora_learning_rate=3e-2)
    stages.dpo(tmp_path / "full", base, pairs)
    lora, full = (load_file(tmp_path / name / FILE_NAME) for name in ("lora", "full"))
    torch.testing.assert_close(lora["held_out"], full["held_out"], rtol=1e-5, atol=1e-5)
    assert read_metrics(tmp_path / "lora/metrics.jsonl")[-1]["dpo/kl"] > 1e-3


def test_the_reference_is_worked_out_once(
    base: Path, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on reads the file; with another file of data, or with a broken file, it is worked out again."""

    def works_out(**changes: Any) -> bool:
        as_reference = step2_dpo.reference._as_reference
        with mock.patch.object(step2_dpo.reference, "_as_reference", wraps=as_reference) as called:
            stages.dpo(tmp_path / "run", base, pairs, **changes)
        return called.called

    assert works_out(max_steps=3)
    kept = (tmp_path / "run" / FILE_NAME).read_bytes()
    assert not works_out(max_steps=3)
    (tmp_path / "run" / FILE_NAME).write_bytes(kept[:100])
    assert works_out(max_steps=3)
    assert (tmp_path / "run" / FILE_NAME).read_bytes() == kept  # although a checkpoint of trained weights was there


def test_only_pairs_that_a_step_takes_are_worked_out(base: Path, pairs: str, tmp_path: Path) -> None:
    stages.dpo(tmp_path, base, pairs)
    known = ~load_file(tmp_path / FILE_NAME)["train"].isnan().any(dim=1)
    assert int(known.sum()) == 8 < len(known)  # two steps of four


def test_it_learns_the_prompts_of_stage_3_too_and_holds_out_as_the_others(
    base: Path, pairs: str, tmp_path: Path
) -> None:
    stages.dpo(tmp_path, base, pairs)
    data = rows_of(base, pairs)
    assert len(load_file(tmp_path / FILE_NAME)["train"]) == len(data.train)
    prompts = [line.value()["prompt"][-1]["content"] for line in read_json_lines(tmp_path / "held_out_prompts.jsonl")]
    template = Template(load_tokenizer(str(base)))
    wanted = {tuple(data.held_out[i]["prompt_ids"]) for i in range(len(data.held_out))}
    found = {tuple(template.prompt_ids([{"role": "user", "content": text}])) for text in prompts}
    assert wanted and wanted <= found


def test_margins_that_are_not_used_are_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    line = '{{"prompt": "q{0}", "chosen": "a{0}", "rejected": "b", "margin": 2}}\n'
    rows.write_text("".join(line.format(i) for i in range(30)))
    stages.dpo(tmp_path / "run", base, str(rows), max_steps=1)
    assert "the pairs have margins, which DPO does not use" in capsys.readouterr().err


def test_rows_without_pairs_are_refused(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "q{i}", "response": "a{i}"}}\n' for i in range(9)))
    with pytest.raises(DataError, match="chosen and rejected"):
        stages.dpo(tmp_path / "run", base, str(rows))
