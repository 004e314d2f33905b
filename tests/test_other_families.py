"""Families that keep a state, or for which transformers has no sequence classifier, through all three stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from rlhf.metrics import read_metrics
from tests.helpers import stages
from tests.helpers.stateful import STATEFUL
from tests.helpers.tiny import VOCABULARY, tiny_tokenizer

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.slow]
CONFIGS: dict[str, Any] = {
    "granite": lambda: GraniteConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=128, logits_scaling=2.0,
    ),
    **{family: STATEFUL[family] for family in ("mamba", "qwen3_next", "lfm2")},
}  # fmt: skip


@pytest.mark.parametrize("copy", ["auto", "on"])
@pytest.mark.parametrize("family", CONFIGS)
def test_family_trains_through_all_stages(family: str, copy: Any, tmp_path: Path) -> None:
    """Stage 3 died for these after stages 1 and 2, or stage 2 after stage 1. What is sampled is what is trained on,
    on the training weights and from a copy."""
    pairs = stages.write_pairs(tmp_path / "pairs.jsonl")
    torch.manual_seed(0)
    lm: Any = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    lm.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    stages.sft(tmp_path / "sft", tmp_path / "base", pairs)
    stages.reward(tmp_path / "reward", tmp_path / "base", pairs)
    stages.ppo(tmp_path / "ppo", tmp_path / "sft/model", tmp_path / "reward/model", pairs, inference_copy=copy)
    first, last = read_metrics(tmp_path / "ppo/metrics.jsonl")
    assert abs(first["ppo/kl"]) < 1e-4
    assert first["ppo/sampler_mismatch"] < 1e-5
    assert last["ppo/kl"] != 0.0
    assert last["ppo/sampler_mismatch"] < 1e-5
    critic = json.loads((tmp_path / "ppo/critic/config.json").read_text())
    assert critic["architectures"][0].endswith("ForSequenceClassification")
