"""Tiny models that keep more than keys and values: linear attention, state-space layers, convolutions, shared keys."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from tests.helpers.tiny import VOCABULARY

_SMALL: dict[str, Any] = dict(
    vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_size=32, num_hidden_layers=2
)
_ATTENTION: dict[str, Any] = dict(
    intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128
)
_WIDE: dict[str, Any] = {key: value for key, value in _ATTENTION.items() if key != "head_dim"}
_LINEAR: dict[str, Any] = dict(
    linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2
)
_MAMBA2: dict[str, Any] = dict(
    mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=8
)
_EXPERTS: dict[str, Any] = dict(
    num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16
)

STATEFUL: dict[str, Any] = {
    "mamba": lambda: hf.MambaConfig(**_SMALL, state_size=8, time_step_rank=2),
    "mamba2": lambda: hf.Mamba2Config(**_SMALL, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **_SMALL, **_ATTENTION, **_LINEAR, **_EXPERTS, layer_types=["linear_attention", "full_attention"]
    ),
    "qwen3_next_linear": lambda: hf.Qwen3NextConfig(  # no layer counts tokens
        **_SMALL, **_ATTENTION, **_LINEAR, **_EXPERTS, layer_types=["linear_attention", "linear_attention"]
    ),
    "qwen3_5_text": lambda: hf.Qwen3_5TextConfig(
        **_SMALL, **_ATTENTION, **_LINEAR, layer_types=["linear_attention", "full_attention"]
    ),
    "lfm2": lambda: hf.Lfm2Config(**_SMALL, **_WIDE, layer_types=["conv", "full_attention"]),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        **_SMALL, **_WIDE, **_MAMBA2, layer_types=["mamba", "attention"], num_local_experts=2,
        num_experts_per_tok=1, shared_intermediate_size=32,
    ),
    "falcon_h1": lambda: hf.FalconH1Config(
        **_SMALL, **_ATTENTION, **_MAMBA2, mamba_d_ssm=64, lm_head_multiplier=0.7, ssm_multipliers=[0.5] * 5
    ),
    "gemma3n_text": lambda: hf.Gemma3nTextConfig(  # the last layer has no keys of its own
        **{**_SMALL, "num_hidden_layers": 3}, **_ATTENTION, num_kv_shared_layers=1, hidden_size_per_layer_input=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=8, laurel_rank=4,
        vocab_size_per_layer_input=VOCABULARY, activation_sparsity_pattern=[0.0] * 3,
    ),
}  # fmt: skip


def stateful_lm(family: str, seed: int = 0) -> Any:
    """A random causal model of a family, with every weight moved."""
    torch.manual_seed(seed)
    model: Any = hf.AutoModelForCausalLM.from_config(STATEFUL[family](), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()
