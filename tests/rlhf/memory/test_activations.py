"""rlhf/memory: the bytes that a layer keeps for its backward pass are those that autograd saves."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from rlhf.memory.activations import cache_bytes, kept_bytes, layer_bytes
from rlhf.memory.shapes import Shape, shape_of


class _Flash(torch.autograd.Function):
    """What a flash attention kernel saves: its inputs, its output and one number a head and token."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        rows, heads, length, _ = query.shape
        out = query.new_zeros(rows, length, heads, value.shape[3]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, torch.empty(rows, heads, length))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError


def saved(config: Any, tokens: int, dtype: torch.dtype, *, checkpointing: bool) -> int:
    """Bytes of all blocks that a forward pass of the layers saves, weights aside."""
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: list[torch.Tensor] = []
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.append(tensor)  # so that no other block gets its address
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return sum(sizes.values())


_SIZES: dict[str, Any] = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {**_SIZES, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 8, "num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "llama": lambda n: hf.LlamaConfig(**_LLAMA, num_hidden_layers=n),
    "qwen2": lambda n: hf.Qwen2Config(**_LLAMA, num_hidden_layers=n),
    "qwen3": lambda n: hf.Qwen3Config(**_LLAMA, num_hidden_layers=n, head_dim=16),
    "gemma": lambda n: hf.GemmaConfig(**_LLAMA, num_hidden_layers=n, head_dim=16),
    "opt": lambda n: hf.OPTConfig(
        **_SIZES, hidden_size=64, ffn_dim=256, num_hidden_layers=n, num_attention_heads=8, word_embed_proj_dim=64
    ),
    "gpt2": lambda n: hf.GPT2Config(**_SIZES, n_embd=64, n_layer=n, n_head=8),
    "gpt_neox": lambda n: hf.GPTNeoXConfig(
        **_SIZES, hidden_size=64, intermediate_size=256, num_hidden_layers=n, num_attention_heads=8
    ),
}


def shape(config: Any) -> Shape:
    found = shape_of(json.loads(config.to_json_string()))
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: _Flash.apply(q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_layer_keeps_what_autograd_saves(family: str, dtype: torch.dtype) -> None:
    """By the difference of models of one and two layers, and of 64 and 128 tokens."""
    per_token = []
    for layers in (1, 2):
        config = CONFIGS[family](layers)
        few, many = (saved(config, tokens, dtype, checkpointing=False) for tokens in (64, 128))
        per_token.append((many - few) / 64)
    measured = per_token[1] - per_token[0]
    assert layer_bytes(shape(CONFIGS[family](1)), dtype.itemsize, 128) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_forward_pass_keeps_what_autograd_saves(family: str) -> None:
    config = CONFIGS[family](3)
    measured = saved(config, 128, torch.bfloat16, checkpointing=False)
    assert kept_bytes(shape(config), 2, 1, 128, checkpointing=False) == pytest.approx(measured, rel=0.1)


def test_checkpointing_keeps_one_input_a_layer() -> None:
    s = shape(CONFIGS["llama"](12))
    per_layer = kept_bytes(s, 2, 4, 128, checkpointing=True) - kept_bytes(s, 2, 4, 128, checkpointing=False)
    assert per_layer == 4 * 128 * (12 * 2 * 64 - 11 * layer_bytes(s, 2, 128))


def test_a_cache_has_keys_and_values_of_each_key_head() -> None:
    assert cache_bytes(shape(CONFIGS["llama"](3)), 2, 10) == 10 * 3 * 2 * (2 * 8) * 2
