"""The loss of conversations of several turns: a mean over the learned tokens of a step, however it is split."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.config import DataSettings
from data.stage_data import demonstrations
from rlhf.hardware import Machine
from rlhf.metrics import read_metrics
from rlhf.template import Template, install_template
from step1_sft.config import SFTConfig
from tests.helpers import stages
from tests.helpers.tiny import save_tiny

SIZES: dict[str, Any] = {"max_prompt_length": 90, "max_response_length": 20, "data_split": "1,0,0", "eval_ratio": 0.2}
CHANGES = {"one by one": {"micro_batch_size": 1}, "all at once": {"micro_batch_size": 8}, "packed": {"packing": True}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model, and conversations of one to three turns, of which some say that they are not learned."""
    folder = tmp_path_factory.mktemp("talks")
    rows = []
    for i in range(40):
        turns: list[dict[str, Any]] = []
        for k in range(i % 3 + 1):
            turns += [
                {"role": "user", "content": f"{i} + {k}?"},
                {"role": "assistant", "content": f"{i + k}" * (k + 1), "weight": int((i + k) % 5 > 0)},
            ]
        rows.append({"messages": turns})
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"base": save_tiny(folder / "base"), "talks": folder / "talks.jsonl"}


def train(output: Path, inputs: dict[str, Path], **changes: Any) -> list[dict[str, Any]]:
    stages.sft(output, inputs["base"], str(inputs["talks"]), **SIZES, mini_batch_size=8, **changes)
    return read_metrics(output / "metrics.jsonl")


@pytest.fixture(scope="module")
def plain(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("plain") / "sft", inputs, micro_batch_size=2)


def test_the_perplexity_is_that_of_every_learned_token(inputs: dict[str, Path], plain: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs["base"])
    install_template(tokenizer)
    data = demonstrations(DataSettings(data_path=[str(inputs["talks"])], **SIZES), Template(tokenizer))
    assert data.report["train"]["turns"] > len(data.train)
    model: Any = AutoModelForCausalLM.from_pretrained(inputs["base"])
    logprobs, texts = [], []
    for row in (data.held_out[i] for i in range(len(data.held_out))):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            said = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        for start, end in zip(row["learned"][::2], row["learned"][1::2], strict=True):
            logprobs.append(said[start - 1 : end - 1])
            texts.append(tokenizer.decode(row["input_ids"][start:end]))
    assert any(len(row["learned"]) > 2 for row in data.held_out)
    assert all(text.endswith("</s>") and "?" not in text and "Human" not in text for text in texts)
    assert plain[0]["sft/perplexity"] == pytest.approx(math.exp(-float(torch.cat(logprobs).mean())), rel=1e-4)


@pytest.mark.parametrize("how", CHANGES)
def test_any_split_gives_the_same_step(
    how: str, inputs: dict[str, Path], plain: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = train(tmp_path / "sft", inputs, **CHANGES[how])
    assert found[0]["sft/perplexity"] == pytest.approx(plain[0]["sft/perplexity"], rel=1e-5)
    if how != "packed":  # whose steps take other rows
        for name in ("sft/loss", "sft/grad_norm"):
            assert [row[name] for row in found[1:]] == pytest.approx([row[name] for row in plain[1:]], rel=1e-4)


def test_the_last_turn_alone_is_another_loss(
    inputs: dict[str, Path], plain: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = train(tmp_path / "sft", inputs, learn="last")
    assert abs(found[0]["sft/perplexity"] / plain[0]["sft/perplexity"] - 1) > 1e-4


def _two_ranks(folder: Path, inputs: dict[str, Path]) -> None:
    train(folder / "sft", inputs, micro_batch_size=1)


@pytest.mark.ranks
def test_two_ranks_take_the_same_steps(
    run_ranks: Callable[..., list[Any]], inputs: dict[str, Path], plain: list[dict[str, Any]], tmp_path: Path
) -> None:
    run_ranks(_two_ranks, tmp_path, inputs)
    found = read_metrics(tmp_path / "sft/metrics.jsonl")
    for name in ("sft/loss", "sft/grad_norm"):
        assert [row[name] for row in found[1:]] == pytest.approx([row[name] for row in plain[1:]], rel=1e-4)


def test_the_last_turn_alone_beside_all_tokens_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = SFTConfig(model="m", output_dir=tmp_path, learn="last", train_on_prompt=True)
    assert "step1_sft.learn=last has no effect with train_on_prompt" in config.problems(Machine(ranks=1))[0]
