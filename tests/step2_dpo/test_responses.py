"""KTO on a tiny model: its step is the formula whatever the micro-batches, it learns labels and pairs alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import step2_dpo.reference
from data.batches import StepSampler
from data.config import DataSettings
from data.rows import Rows
from data.stage_data import StageData, unpaired
from rlhf.errors import DataError
from rlhf.metrics import read_metrics
from rlhf.models.loading import load_tokenizer
from rlhf.template import Template
from step2_dpo.config import DPOConfig
from step2_dpo.reference import FILE_NAME
from step2_dpo.responses import mismatched, weights_hint
from tests.helpers import engines, stages
from tests.helpers.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("one_rank")
# steps on 6 responses
SMALL: dict[str, Any] = {"mini_batch_size": 6, "max_samples": 6, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stages.write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def write_labelled(path: Path, count: int = 60, **more: Any) -> str:
    """Questions with one answer each: polite ones are good, rude ones bad."""
    rows = [
        {
            "prompt": f"What is {i}+{i % 7}?",
            "completion": f"It is {i + i % 7}." if i % 2 else f"{i} no" + "!" * (i % 3),
            "label": bool(i % 2),
            **more,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "rows.jsonl")


def kto(output: Path, base: Path, data: str, **changes: Any) -> Any:
    return stages.dpo(output, base, data, loss="kto", **changes)


def data_of(base: Path, path: str, **changes: Any) -> StageData:
    known = {k: v for k, v in {**stages.BATCHES, **changes}.items() if k in DataSettings.model_fields}
    settings = DataSettings(**{**known, "data_path": [path], "data_split": "1,2,0"})
    return unpaired(settings, Template(load_tokenizer(str(base))))


def rows_of(base: Path, path: str, **changes: Any) -> Rows:
    found = data_of(base, path, **changes).train
    assert isinstance(found, Rows)
    return found


def logprob(model: Any, prompt_ids: list[int], response_ids: list[int]) -> torch.Tensor:
    """Log-probability of a response, from the whole table of logits."""
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    table = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return table.gather(1, ids[0, 1:, None])[len(prompt_ids) - 1 :, 0].sum()


def ratio(model: Any, reference: Any, prompt: Any, response: Any) -> torch.Tensor:
    with torch.no_grad():
        ref = logprob(reference, prompt["prompt_ids"], response["response_ids"])
    return logprob(model, prompt["prompt_ids"], response["response_ids"]) - ref


def loss_and_baseline(model: Any, reference: Any, step: list[Any], config: DPOConfig) -> tuple[torch.Tensor, float]:
    """The loss of a step of rows, with z0 of the prompts and the responses one row before."""
    with torch.no_grad():
        others = [ratio(model, reference, row, step[i - 1]) for i, row in enumerate(step)]
    baseline = max(0.0, float(torch.stack(others).mean()))
    losses = []
    for row in step:
        z = config.beta * (ratio(model, reference, row, row) - baseline)
        if row["desirable"]:
            losses.append(config.desirable_weight * (1 - torch.sigmoid(z)))
        else:
            losses.append(config.undesirable_weight * (1 - torch.sigmoid(-z)))
    return torch.stack(losses).mean(), baseline


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.5}])
def test_three_steps_are_the_formula_whatever_the_micro_batches(
    settings: dict[str, Any], base: Path, labelled: str, tmp_path: Path
) -> None:
    """From the second step on policy and reference differ, so z0 is there; it is that of the step, whatever the
    micro-batches, and of other couples in each epoch, as the order is another one."""
    values = {**SMALL, **settings, "max_steps": 3, "epochs": 3, "lr_schedule": "constant", "adam_eps": 1e-3}
    for size in (6, 4, 1):
        kto(tmp_path / str(size), base, labelled, micro_batch_size=size, **values)
    config = DPOConfig(**settings)
    rows, sampler = rows_of(base, labelled, **SMALL), StepSampler(6, 6, config.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    reference: Any = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    losses, baselines = [], []
    for number in range(3):
        step = [rows[row] for row in sampler.rows(number)]
        loss, baseline = loss_and_baseline(model, reference, step, config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        baselines.append(baseline)
    assert max(baselines) > 1e-2
    for size in (6, 4, 1):
        metrics = read_metrics(tmp_path / str(size) / "metrics.jsonl")[1:]
        assert [row["dpo/loss"] for row in metrics] == pytest.approx(losses, rel=1e-4)
        assert [row["dpo/baseline"] for row in metrics] == pytest.approx(baselines, rel=1e-3, abs=1e-4)
        saved = load_file(tmp_path / str(size) / "model/model.safetensors")
        assert engines.furthest(saved, {name: model.state_dict()[name] for name in saved}) < 2e-5


@pytest.mark.parametrize("data", ["labelled", "pairs"])
def test_it_learns_labels_and_pairs(data: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """All rude answers lose against polite ones on held-out prompts; at the start policy and reference are one."""
    result = kto(
        tmp_path, base, request.getfixturevalue(data), learning_rate=3e-3, max_steps=None, epochs=4, eval_ratio=0.3
    )
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert first["dpo/eval_loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["dpo/margin"] == pytest.approx(0.0, abs=1e-5)
    assert last["dpo/accuracy"] > 0.95
    assert last["dpo/eval_loss"] < 0.4
    assert last["dpo/chosen_reward"] > 0 > last["dpo/rejected_reward"]
    assert result.models == {"dpo": str(tmp_path / "model")}
    assert 0 <= result.metrics["dpo/accuracy_before"] <= 1


def test_figures_are_those_of_the_exported_model(base: Path, labelled: str, tmp_path: Path) -> None:
    kto(tmp_path, base, labelled, learning_rate=3e-3, beta=0.2)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    reference: Any = AutoModelForCausalLM.from_pretrained(base)
    found = data_of(base, labelled).held_out
    rows = [found[i] for i in range(len(found))]
    good = [bool(row["desirable"]) for row in rows]
    with torch.no_grad():
        rewards = [0.2 * float(ratio(model, reference, row, row)) for row in rows]
        loss, baseline = loss_and_baseline(model, reference, rows, DPOConfig(beta=0.2))
    chosen = [r for r, is_good in zip(rewards, good, strict=True) if is_good]
    rejected = [r for r, is_good in zip(rewards, good, strict=True) if not is_good]
    assert chosen and rejected
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["dpo/eval_baseline"] == pytest.approx(baseline, rel=1e-3, abs=1e-4)
    assert last["dpo/eval_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert last["dpo/chosen_reward"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)
    assert last["dpo/rejected_reward"] == pytest.approx(sum(rejected) / len(rejected), abs=1e-4)
    couples = [c > r for c in chosen for r in rejected]
    assert last["dpo/accuracy"] == pytest.approx(sum(couples) / len(couples))


def test_with_adapters_the_reference_is_the_model_without_them(base: Path, labelled: str, tmp_path: Path) -> None:
    """Also for the mismatched responses, whose log-probabilities are kept with the others."""
    kto(tmp_path / "lora", base, labelled, lora_rank=2, lora_learning_rate=3e-2)
    kto(tmp_path / "full", base, labelled)
    lora, full = (load_file(tmp_path / name / FILE_NAME) for name in ("lora", "full"))
    for name in ("held_out", "mismatched", "held_out_mismatched"):
        torch.testing.assert_close(lora[name], full[name], rtol=1e-5, atol=1e-5)
    assert read_metrics(tmp_path / "lora/metrics.jsonl")[-1]["dpo/kl"] > 1e-3


def test_the_reference_is_kept_as_long_as_the_steps_take_the_same_couples(
    base: Path, labelled: str, tmp_path: Path
) -> None:
    """Another order of the rows has other mismatched responses, so what was kept does not serve."""

    def works_out(**changes: Any) -> bool:
        as_reference = step2_dpo.reference._as_reference
        with mock.patch.object(step2_dpo.reference, "_as_reference", wraps=as_reference) as called:
            kto(tmp_path, base, labelled, **changes)
        return called.called

    assert works_out()
    assert not works_out()
    assert works_out(seed=5)
    mismatches = load_file(tmp_path / FILE_NAME)["mismatched"]
    assert len(mismatches) == 8  # two steps of four
    assert works_out(seed=5, mini_batch_size=3)


def test_mismatched_couples_by_hand() -> None:
    assert mismatched([4, 7, 5]).tolist() == [[4, 5], [7, 4], [5, 7]]
    assert mismatched([4]).tolist() == []


def test_a_last_step_of_one_row_has_no_baseline(base: Path, labelled: str, tmp_path: Path) -> None:
    """5 rows in steps of 2: the third step has one row, whose own response is no mismatch."""
    kto(tmp_path, base, labelled, mini_batch_size=2, max_samples=5, max_steps=None, learning_rate=3e-2)
    *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert last["step"] == 3
    assert last["dpo/baseline"] == 0.0
    assert math.isfinite(last["dpo/loss"])


@pytest.mark.parametrize(
    "good, bad, settings, way",
    [
        (100, 100, {}, ""),
        (133, 100, {}, ""),
        (1000, 100, {}, "undesirable_weight=7.5"),
        (1000, 100, {"undesirable_weight": 8.0}, ""),
        (100, 400, {}, "desirable_weight=4"),
        (100, 400, {"desirable_weight": 4.0}, ""),
    ],
)
def test_unequal_kinds_need_weights(good: int, bad: int, settings: dict[str, float], way: str) -> None:
    """10 times as many good ones: weights 1 and 7.5 make it 1.33 times."""
    hint = weights_hint(good, bad, DPOConfig(loss="kto", **settings))  # type: ignore[arg-type]
    assert hint.partition("--set step2_dpo.")[2] == way


def test_one_kind_alone_is_refused(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "q{i}", "completion": "a{i}", "label": 1}}\n' for i in range(30)))
    with pytest.raises(DataError, match="all train responses are good: this stage needs both kinds"):
        kto(tmp_path / "run", base, str(rows))


def test_margins_that_are_not_used_are_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    line = '{{"prompt": "q{0}", "chosen": "a{0}", "rejected": "b", "margin": 2}}\n'
    rows.write_text("".join(line.format(i) for i in range(30)))
    kto(tmp_path / "run", base, str(rows), max_steps=1)
    assert "the pairs have margins, which KTO does not use" in capsys.readouterr().err
