"""rlhf/memory: operations and seconds of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from rlhf.hardware import Machine
from rlhf.memory.cards import described
from rlhf.memory.effort import active_weights, effort, forward
from rlhf.memory.known import known_config
from rlhf.memory.shapes import shape_of
from rlhf.memory.workload import Role
from step3_ppo.config import PPOConfig
from step3_ppo.spec import SPEC

MODEL: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_forward_pass_has_the_operations_that_torch_counts() -> None:
    """Products of linear layers; torch does not count its attention kernel on CPUs, which is added by hand."""
    shape = shape_of(MODEL)
    assert shape is not None
    role = Role("actor", shape, 0, 0, 0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{k: v for k, v in MODEL.items() if k != "model_type"}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(2, 48, dtype=torch.long), use_cache=False)
    assert forward(role, tokens=96, heads=96, context=0) == counter.get_total_flops()
    mixing = 2 * 2 * 48 * 48 / 2 * 64 * 2 * 2  # scores and values of 2 × 48 tokens in 2 layers, half of them masked
    assert forward(role, tokens=96, heads=96, context=48) - counter.get_total_flops() == mixing


def test_a_token_meets_only_the_experts_that_it_visits() -> None:
    dense = shape_of({**MODEL, "model_type": "mixtral", "num_local_experts": 1, "num_experts_per_tok": 1})
    sparse = shape_of({**MODEL, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2})
    assert dense is not None and sparse is not None
    expert = 3 * 64 * 176 * 2
    assert active_weights(sparse) - active_weights(dense) == expert + 2 * 64 * 7  # one more expert, a wider router


def test_generation_waits_for_the_weights() -> None:
    """OPT-13B on eight GPUs: each token of a group reads the copy once, which takes longer than its operations."""
    config = PPOConfig(
        dtype="bf16", rollout_batch_size=64, actor_zero_stage=3, critic_zero_stage=3, activation_checkpointing=True
    )
    machine = Machine(ranks=8, gpus=True, bf16=True)
    models = {"actor_model": known_config("opt-13b") or {}, "reward_model": known_config("opt-350m") or {}}
    work = SPEC.workload(config, models, machine)
    assert work is not None
    found = effort(work, machine, described(80))
    at_peak = found.total / (8 * 312e12 * 0.4)
    reading = 256 * 12.85e9 * 2 / (1935e9 * 0.6)
    generating = found.operations["generate"] / (8 * 312e12 * 0.4)
    assert found.seconds == pytest.approx(at_peak - generating + reading, rel=0.01)
    assert effort(work, machine, None).seconds == 0


def test_recomputed_activations_cost_a_forward_pass() -> None:
    def of(**settings: Any) -> float:
        models = {"actor_model": MODEL, "reward_model": MODEL}
        work = SPEC.workload(PPOConfig(**settings), models, Machine())
        assert work is not None
        return effort(work, Machine(), None).operations["train"]

    assert of(activation_checkpointing=True) == pytest.approx(of() * 4 / 3)
    assert of(ppo_epochs=2) == pytest.approx(of() * 2)
