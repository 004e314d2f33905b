"""rlhf/memory: the bytes of each phase, beside what was measured on a device that counts them.

The device was a CUDA device of torch whose memory is main memory, so every block of every library is counted; buckets
had 10⁶ elements, and attention kept what torch's flash attention keeps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.hardware import Machine
from rlhf.memory import engines, phases
from rlhf.memory.phases import StageMemory, stage_memory
from rlhf.training.engine import REDUCE_BUCKET
from step3_ppo.config import PPOConfig
from step3_ppo.hybrid.engine import CACHE_SHARE
from step3_ppo.spec import SPEC

LLAMA = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": 8192, "hidden_size": 512, "ffn_dim": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 8, "max_position_embeddings": 512, "word_embed_proj_dim": 512,
}  # fmt: skip
SMALL = {
    "model_type": "opt", "vocab_size": 4096, "hidden_size": 256, "ffn_dim": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 4, "max_position_embeddings": 2048, "word_embed_proj_dim": 256,
}  # fmt: skip
NAMES = ("rollout", "score", "train actor", "step actor", "train critic", "step critic")
THREE = {f"{role}_zero_stage": 3 for role in ("actor", "critic", "reference", "reward")}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"actor_zero_stage": stage, "critic_zero_stage": stage, **more}


# name: model, ranks, settings, what stays, peaks of NAMES; all in MB
MEASURED: dict[str, tuple[dict[str, Any], int, dict[str, Any], float, tuple[float | None, ...]]] = {
    "ZeRO-2": (LLAMA, 1, zero(2), 843.9, (869.3, 849.9, 1008.9, 978.6, 971.1, 961.9)),
    "ZeRO-2 × 2": (LLAMA, 2, zero(2), 514.8, (527.5, 520.8, 613.3, 598.9, 598.3, 590.6)),
    "ZeRO-3": (LLAMA, 1, zero(3, **THREE), 1033.5, (1109.5, 1039.5, 1093.4, 1134.7, 1072.3, 1118.0)),
    "ZeRO-3 × 2": (LLAMA, 2, zero(3, **THREE), 525.1, (586.9, 625.0, 623.4, 574.1, 606.7, 565.8)),
    "offload": (LLAMA, 1, zero(2, offload_optimizer=True), 202.5, (227.9, 208.5, 367.6, 337.2, 329.7, 320.5)),
    "offload, ZeRO-3 × 2": (
        LLAMA, 2, zero(3, offload_optimizer=True), 146.4, (208.4, 246.3, 244.7, 172.1, 228.4, 172.1),
    ),
    "LoRA, ZeRO-3 × 2": (
        OPT, 2, {**zero(3, lora_rank=8, inference_tp_size=2), "reward_zero_stage": 3}, 267.1,
        (311.0, 405.0, 382.0, 267.0, None, 314.0),
    ),
    "LoRA": (LLAMA, 1, zero(2, lora_rank=8), 396.2, (472.2, 402.5, 436.3, 398.4, 523.2, 514.2)),
    "ZeRO-1": (SMALL, 1, zero(1), 227.3, (238.3, 229.5, 255.3, 277.8, 252.5, 277.8)),
    "ZeRO-1 × 2": (LLAMA, 2, zero(1), 514.8, (527.5, 520.8, 613.9, 616.5, 596.3, 600.5)),
    "ZeRO-0": (
        LLAMA, 1, zero(0, dtype="fp32", inference_dtype="fp32"), 843.9, (878.5, 850.1, 1027.0, 1046.3, 997.2, 1012.7),
    ),
    "fp32": (LLAMA, 1, zero(1, dtype="fp32"), 1029.5, (1105.5, 1035.7, 1217.0, 1236.0, 1186.0, 1202.0)),
    "fp32 × 2": (LLAMA, 2, zero(2, dtype="fp32"), 700.4, (764.0, 707.0, 849.0, 803.0, 825.0, 787.0)),
    "checkpointing": (
        OPT, 1, zero(2, activation_checkpointing=True), 841.4, (872.9, 848.1, 989.3, 968.0, 989.0, 968.0),
    ),
}  # fmt: skip
# ranks, settings, peak in MB while the roles are built
LOADED: dict[str, tuple[int, dict[str, Any], float]] = {
    "ZeRO-0": (1, zero(0, dtype="fp32", inference_dtype="fp32"), 126.3),
    "ZeRO-1": (1, zero(1), 126.3),
    "ZeRO-2 without EMA": (1, zero(2, ema=False), 113.6),
    "ZeRO-2, LoRA": (1, zero(2, lora_rank=8), 77.1),
    "ZeRO-2, offloaded": (1, zero(2, offload_optimizer=True), 54.7),
    "ZeRO-3": (1, zero(3, **THREE), 180.8),
    "ZeRO-2 × 2": (2, zero(2), 88.4),
    "ZeRO-3 × 2": (2, zero(3, **THREE), 92.4),
}


def planned(model: dict[str, Any], ranks: int, **settings: Any) -> StageMemory:
    """Stage 3 of two equal models on GPUs: 8 responses of 32 tokens to prompts of 96, two at a time."""
    sizes = {"rollout_batch_size": 8, "mini_batch_size": 8, "micro_batch_size": 2}
    lengths = {"max_prompt_length": 96, "max_response_length": 32}
    config = PPOConfig(**{"dtype": "bf16", **sizes, **lengths, **settings})
    machine = Machine(ranks=ranks, gpus=True, bf16=True)
    work = SPEC.workload(config, {"actor_model": model, "reward_model": model}, machine)
    assert work is not None
    return stage_memory(work, machine)


@pytest.mark.parametrize("name", MEASURED)
def test_phases_are_within_four_percent_of_what_was_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "REDUCE_BUCKET", 1_000_000)
    monkeypatch.setattr(phases, "CONTEXT", 0.0)
    monkeypatch.setattr(phases, "COMMUNICATORS", 0.0)
    model, ranks, settings, stays, peaks = MEASURED[name]
    found = planned(model, ranks, **settings)
    by_name = {phase.name: phase for phase in found.phases}
    assert sum(by_name["score"].roles.values()) / 1e6 == pytest.approx(stays, rel=0.025)
    for phase, measured in zip(NAMES, peaks, strict=True):
        assert measured is None or by_name[phase].total / 1e6 == pytest.approx(measured, rel=0.04), phase


@pytest.mark.parametrize("name", LOADED)
def test_loading_is_planned_in_the_order_in_which_roles_are_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was planned up to 46% high: what an engine needs for a moment came on top of everything, also on top of the
    moving average and the reward model, which are made after the last engine."""
    monkeypatch.setattr(engines, "REDUCE_BUCKET", 1_000_000)
    monkeypatch.setattr(phases, "CONTEXT", 0.0)
    monkeypatch.setattr(phases, "COMMUNICATORS", 0.0)
    ranks, settings, measured = LOADED[name]
    load = planned(SMALL, ranks, **settings).phases[0]
    assert (load.name, load.total / 1e6) == ("load", pytest.approx(measured, rel=0.01))


def test_sixteen_bytes_a_weight_by_hand() -> None:
    """ZeRO-2 on one rank, in bf16: 2 for the weight, 12 for master and means, 4 for the average; 4 of gradient in a
    step."""
    found = planned(LLAMA, 1, **zero(2))
    weights, critic = 25_303_552, 21_109_760
    train = next(phase for phase in found.phases if phase.name == "train actor")
    assert train.roles == {
        "actor": weights * 18, "critic": critic * 14, "reference": weights * 2, "reward model": critic * 2,
    }  # fmt: skip
    assert train.beside["gradients"] == weights * 4
    assert found.checkpoint == weights * 16 + critic * 12


def test_a_cache_that_does_not_fit_is_taken_in_groups() -> None:
    machine = Machine(gpus=True, bf16=True)
    config = PPOConfig(dtype="bf16", rollout_batch_size=4096, **zero(2))
    work = SPEC.workload(config, {"actor_model": LLAMA, "reward_model": LLAMA}, machine)
    assert work is not None
    whole, half = (
        next(p for p in stage_memory(work, machine, capacity=c).phases if p.name == "rollout") for c in (0.0, 3.9e9)
    )
    assert whole.beside["cache"] == 4096 * 512 * 6 * 2 * 2 * 64 * 2
    assert 0 < half.beside["cache"] < whole.beside["cache"]
    assert re.fullmatch(r"in \d+ groups, as the cache does not fit at once", half.note)
    assert half.total < 3.9e9


def test_what_a_rollout_keeps_is_there_in_all_later_phases() -> None:
    """With `release_inference_cache` off, copy and cache were planned for the rollout alone."""
    freed, kept = (planned(LLAMA, 1, **zero(3, release_inference_cache=released)) for released in (True, False))
    rollout = next(phase for phase in kept.phases if phase.name == "rollout")
    more = rollout.beside["copy"] + rollout.beside["cache"]
    assert rollout.beside["copy"] == 25_303_552 * 2
    for before, after in zip(freed.phases, kept.phases, strict=True):
        assert after.total == pytest.approx(before.total + (0 if before.name in ("load", "rollout") else more))


def test_constants_are_those_of_the_code() -> None:
    assert engines.REDUCE_BUCKET == REDUCE_BUCKET
    assert phases.CACHE_SHARE == CACHE_SHARE


def test_a_folder_without_weights_is_counted_by_its_config(tmp_path: Path) -> None:
    found = planned(OPT, 1, actor_model=str(tmp_path), **zero(2))
    assert found.largest.total > 0


def test_an_actor_that_is_not_known_has_no_plan() -> None:
    assert SPEC.workload(PPOConfig(), {"reward_model": LLAMA}, Machine()) is None
    assert (
        SPEC.workload(PPOConfig(), {"actor_model": {"model_type": "llama"}, "reward_model": LLAMA}, Machine()) is None
    )
