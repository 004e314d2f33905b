"""rlhf/memory: which changes are tried, and in which order."""

from __future__ import annotations

from typing import Any

from rlhf.hardware import Machine
from rlhf.memory.ladder import candidates
from step1_sft.config import SFTConfig
from step1_sft.spec import SPEC as SFT
from step3_ppo.config import PPOConfig
from step3_ppo.spec import SPEC as PPO

MODEL = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip


def tried(config: Any, machine: Machine, *typed: str) -> list[dict[str, Any]]:
    spec, models = (PPO, {"actor_model": MODEL, "reward_model": MODEL}) if isinstance(config, PPOConfig) else (
        SFT, {"model": MODEL},
    )  # fmt: skip
    work = spec.workload(config, models, machine)
    assert work is not None
    return list(candidates(config, work, machine, typed=typed))


def test_on_one_gpu_each_change_is_tried_alone_and_then_added() -> None:
    one = Machine(gpus=True, bf16=True)
    found = tried(SFTConfig(micro_batch_size=4), one)
    assert found[:5] == [
        {"activation_checkpointing": True},
        {"micro_batch_size": 2},
        {"micro_batch_size": 1},
        {"offload_optimizer": True},
        {"lora_rank": 64},
    ]
    assert found[-1] == {
        "activation_checkpointing": True, "micro_batch_size": 1, "offload_optimizer": True, "lora_rank": 64,
    }  # fmt: skip


def test_several_gpus_share_weights_and_the_copy() -> None:
    found = tried(PPOConfig(micro_batch_size=1, activation_checkpointing=True), Machine(ranks=8, gpus=True, bf16=True))
    assert {"reference_zero_stage": 3, "reward_zero_stage": 3} in found
    assert {"actor_zero_stage": 3, "critic_zero_stage": 3} in found
    assert [change for change in found if list(change) == ["inference_tp_size"]] == [
        {"inference_tp_size": 2}, {"inference_tp_size": 4},
    ]  # fmt: skip  # four key heads are not cut over eight


def test_what_was_typed_or_is_already_so_is_not_tried() -> None:
    one = Machine(gpus=True, bf16=True)
    config = SFTConfig(micro_batch_size=1, activation_checkpointing=True, offload_optimizer=True, lora_rank=8)
    assert tried(config, one) == []
    found = tried(SFTConfig(micro_batch_size=1), one, "lora_rank", "offload_optimizer")
    assert {key for change in found for key in change} == {"activation_checkpointing"}


def test_reuse_and_compilation_end_where_weights_are_gathered() -> None:
    config = PPOConfig(compile=True, reuse_forward=True)
    found = tried(config, Machine(ranks=2, gpus=True, bf16=True))
    whole = next(change for change in found if change.get("actor_zero_stage") == 3)
    assert whole["compile"] is False and whole["reuse_forward"] is False


def test_what_a_change_does_not_go_with_is_switched_off() -> None:
    """The plan would refuse what it advises: graphs of a copy that is cut, a compiled forward of gathered weights."""
    eight = Machine(ranks=8, gpus=True, bf16=True)
    graphs = {"inference_cuda_graphs": False}
    found = tried(PPOConfig(inference_cuda_graphs=True, inference_copy="on"), eight)
    assert {"inference_tp_size": 2, **graphs} in found
    assert {"inference_copy": "off", "inference_tp_size": 1, **graphs} in found
    for name in ("inference_cuda_graphs", "inference_compile"):
        config = PPOConfig(**{name: True})  # type: ignore[arg-type]
        for changes in tried(config, eight):
            assert not config.model_copy(update=changes).problems(eight), changes
        config = config.model_copy(update={"inference_copy": "off"})
        (gathered, *_) = (changes for changes in tried(config, eight) if changes.get("actor_zero_stage") == 3)
        assert gathered[name] is False and not config.model_copy(update=gathered).problems(eight)


def test_memory_that_was_kept_is_given_back_first() -> None:
    one = Machine(gpus=True, bf16=True)
    assert tried(PPOConfig(release_inference_cache=False), one)[0] == {"release_inference_cache": True}
    assert all("release_inference_cache" not in changes for changes in tried(PPOConfig(), one))


def test_passes_that_score_become_smaller_first() -> None:
    """They were left as large as they were while only the micro-batches of training were halved, which cannot help
    where the scoring is the largest phase."""
    config = PPOConfig(micro_batch_size=2, scoring_micro_batch_size=8, activation_checkpointing=True)
    assert tried(config, Machine())[:4] == [
        {"scoring_micro_batch_size": 4},
        {"scoring_micro_batch_size": 2},
        {"micro_batch_size": 1},
        {"micro_batch_size": 1, "scoring_micro_batch_size": 1},
    ]
    typed = tried(config, Machine(), "scoring_micro_batch_size")
    assert typed[0] == {"micro_batch_size": 1} and not any("scoring_micro_batch_size" in change for change in typed)


def test_a_cpu_has_nowhere_to_offload_to() -> None:
    assert all("offload_optimizer" not in change for change in tried(SFTConfig(), Machine()))
