"""The sizes of tensor parallelism that a config.json allows, and the lines about those that it does not allow."""

from __future__ import annotations

from typing import Any

import pytest

from step3_ppo.hybrid.parallel_sizes import parallel_problems, sizes_that_divide


def problem(size: int, **config: Any) -> str:
    (line,) = parallel_problems({"model_type": "llama", **config}, model="m", size=size)
    return line.removeprefix(f"step3_ppo.inference_tp_size={size}").strip()


def test_sizes_divide_heads_and_inner_layers() -> None:
    config: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 96}
    assert sizes_that_divide(config) == [1, 2, 4]
    assert sizes_that_divide({"text_config": config}) == [1, 2, 4]
    assert sizes_that_divide({"n_head": 6, "n_embd": 48}) == [1, 2, 3, 6]
    assert sizes_that_divide({"num_attention_heads": 8, "ffn_dim": 12}) == [1, 2, 4]
    config |= {"model_type": "llama"}
    assert parallel_problems(config, model="m", size=2) == []
    assert problem(3, **config) == "does not divide the attention of m (12 heads, 4 key-value heads); try 1, 2, 4"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "qwen3_moe", "intermediate_size": 64, "moe_intermediate_size": 6},
            "the inner layers of m (64 intermediate_size, 6 moe_intermediate_size); try 1, 2",
        ),
        (
            {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 30},
            "the inner layers of m (30 shared_expert_intermediate_size); try 1, 2",
        ),
        (
            {"model_type": "gemma3n_text", "intermediate_size": [64, 64, 66]},
            "the inner layers of m (2 intermediate_size); try 1, 2",
        ),
        (
            {"model_type": "gemma4_text", "per_layer_config": {"05": {"num_key_value_heads": 2}}},
            "the attention of m (8 heads, 2 key-value heads); try 1, 2",
        ),
        (
            {"model_type": "laguna", "num_attention_heads_per_layer": [8, 6]},
            "the attention of m (2 heads, 8 key-value heads); try 1, 2",
        ),
        ({"model_type": "olmo2", "head_dim": 6}, "the attention of m (6 numbers a head); try 1, 2, 3, 6"),
    ],
)
def test_everything_that_is_cut_must_divide(config: dict[str, Any], said: str) -> None:
    """Experts, shared experts, and layers that differ from the others: only the first name of a count was looked at,
    so that a cut failed when stage 3 started."""
    eight_heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    assert parallel_problems(eight_heads | config, model="m", size=2) == []
    assert problem(4, **eight_heads | config) == f"does not divide {said}"


def test_one_key_head_for_all_matters_only_where_heads_are_cut() -> None:
    """Falcon's and StarCoder's queries, keys and values are one layer, and their attention is whole on every rank."""
    assert problem(2, model_type="gemma", num_attention_heads=8, num_key_value_heads=1) == (
        "does not divide the attention of m (8 heads, 1 key-value heads); try 1"
    )
    seventy_one = {"model_type": "falcon", "num_attention_heads": 71, "hidden_size": 4544, "num_kv_heads": 71}
    assert parallel_problems(seventy_one, model="m", size=2) == []
    starcoder = {"model_type": "gpt_bigcode", "n_head": 48, "n_embd": 6144, "n_inner": 24576, "multi_query": True}
    assert parallel_problems(starcoder, model="m", size=8) == []


def test_what_a_config_leaves_to_its_class_is_left_to_the_stage() -> None:
    """Gemma 3 on the hub says nothing of its heads; the plan took that for one head and refused every size."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    assert parallel_problems({"model_type": "gemma3", "text_config": text}, model="m", size=2) == []


def test_a_family_that_cannot_be_cut_is_named() -> None:
    assert problem(2, model_type="mamba") == ": m is of type mamba, which has no plan for tensor parallelism; use 1"
    assert parallel_problems({"model_type": "mamba"}, model="m", size=1) == []
