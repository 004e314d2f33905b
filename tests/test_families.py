"""Every family goes through all three stages, and what a stage leaves on disk is what it trained."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.metrics import read_metrics
from rlhf.stages.result import StageResult
from rlhf.template import Template
from tests.helpers import stages
from tests.helpers.tiny import FAMILIES, save_tiny

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.slow]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stages.write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl")


@dataclass
class Run:
    """One family's three stages: where they wrote, what they returned, what was in memory at each export."""

    folder: Path
    results: dict[str, StageResult]
    in_memory: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pairs: str) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    base = save_tiny(folder / "base", request.param)
    in_memory = {}
    with stages.recorded_exports() as seen:
        sft = stages.sft(folder / "sft", base, pairs)
        in_memory["sft"] = seen["model"]
        reward = stages.reward(folder / "reward", base, pairs, seed=1)
        in_memory["reward"] = seen["model"]
        ppo = stages.ppo(folder / "ppo", folder / "sft/model", folder / "reward/model", pairs)
        in_memory |= {"actor": seen["actor"], "critic": seen["critic"]}
    return Run(folder, {"sft": sft, "reward": reward, "ppo": ppo}, in_memory)


def test_family_trains_through_all_stages(family_run: Run) -> None:
    """Training moves the weights, every figure is a number, and the first rollout finds all roles in agreement."""
    results = family_run.results
    assert results["sft"].metrics["sft/perplexity"] != results["sft"].metrics["sft/perplexity_before"]
    for stage, result in results.items():
        assert result.metrics
        for name, value in result.metrics.items():
            assert math.isfinite(value), f"{stage}: {name}"
    rows = read_metrics(family_run.folder / "ppo/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    first, last = rows
    assert abs(first["ppo/kl"]) < 1e-4
    assert first["ppo/sampler_mismatch"] < 1e-5  # left-padded with a cache against right-padded without
    assert last["ppo/kl"] != 0.0
    assert last["ppo/sampler_mismatch"] < 1e-5
    assert all(row["ppo/skipped_steps"] == 0 for row in rows)


@pytest.mark.parametrize("label, folder", [("sft", "sft/model"), ("actor", "ppo/actor"), (None, "ppo/actor_ema")])
def test_language_models_open_as_they_were_trained(family_run: Run, label: str | None, folder: str) -> None:
    path = family_run.folder / folder
    model, info = cast(Any, AutoModelForCausalLM).from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if label:
        torch.testing.assert_close(stages.outputs(model), family_run.in_memory[label], rtol=1e-5, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(family_run.folder / "base")
        assert (stages.outputs(model) - stages.outputs(base)).abs().max() > 1e-3, "nothing was learned"
    template = Template(AutoTokenizer.from_pretrained(path))
    assert model.generation_config.eos_token_id == template.end_token_id
    assert model.generation_config.pad_token_id == template.tokenizer.pad_token_id != template.end_token_id
    assert template.tokenizer.chat_template


@pytest.mark.parametrize("label, folder", [("reward", "reward/model"), ("critic", "ppo/critic")])
def test_scalar_models_open_as_they_were_trained(family_run: Run, label: str, folder: str) -> None:
    """Also: the score that transformers reads at the last token is the one that we read."""
    path = family_run.folder / folder
    model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_labels == 1
    assert model.score.bias is None
    torch.testing.assert_close(stages.outputs(model), family_run.in_memory[label], rtol=1e-5, atol=1e-5)
    saved = json.loads((path / "config.json").read_text())
    assert saved["score_std"] > 1e-6
    of_reward = json.loads((family_run.folder / "reward/model/config.json").read_text())
    assert (saved["score_mean"], saved["score_std"]) == (of_reward["score_mean"], of_reward["score_std"])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_adapters_are_merged_and_kept(family: str, tmp_path: Path, pairs: str) -> None:
    """The merged folder has the adapted model's logits; the base with the kept adapter on top has them, too."""
    from peft import PeftModel

    base = save_tiny(tmp_path / "base", family)
    with stages.recorded_exports() as seen:
        stages.sft(tmp_path / "sft", base, pairs, lora_rank=2, lora_learning_rate=0.05)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "sft/model")
    torch.testing.assert_close(stages.outputs(merged), seen["model"], rtol=1e-4, atol=1e-4)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    assert (stages.outputs(plain) - seen["model"]).abs().max() > 1e-2, "the adapters did nothing"
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "sft/model/adapter"))
    torch.testing.assert_close(stages.outputs(adapted), seen["model"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt_projected", "mixtral", "deepseek_v3"])
def test_adapters_go_through_all_stages(family: str, tmp_path: Path, pairs: str) -> None:
    """Under LoRA the reference is the actor with its adapters off: KL is 0 on the first rollout and not on the second.

    The reward model's head is trained whole beside the adapters of its backbone.
    """
    base = save_tiny(tmp_path / "base", family)
    lora: dict[str, Any] = {"lora_rank": 2, "lora_learning_rate": 0.02}
    with stages.recorded_exports() as seen:
        stages.reward(tmp_path / "reward", base, pairs, **lora)
        reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward/model")
        torch.testing.assert_close(stages.outputs(reward), seen["model"], rtol=1e-4, atol=1e-4)
        stages.ppo(tmp_path / "ppo", base, tmp_path / "reward/model", pairs, **lora)
    actor = AutoModelForCausalLM.from_pretrained(tmp_path / "ppo/actor")
    torch.testing.assert_close(stages.outputs(actor), seen["actor"], rtol=1e-4, atol=1e-4)
    first, last = read_metrics(tmp_path / "ppo/metrics.jsonl")
    assert abs(first["ppo/kl"]) < 1e-4
    assert abs(last["ppo/kl"]) > 1e-4
    head = load_file(tmp_path / "reward/model/model.safetensors")["score.weight"]
    assert head.abs().sum() > 0
    drawn_std = float(head.std()) * math.sqrt(head.shape[1] + 1)
    assert 0.5 < drawn_std < 2.0
