"""Attention of one-token queries over the sampler's cache, registered with transformers as `rlhf_decode`.

The stock kernels are made for long queries; at length 1 two batched products and a softmax are far cheaper, above all
in bf16 on CPUs. Longer queries (prompts) go to the stock kernel.

B rows, H query heads, K key-value heads, G = H / K, S tokens of the cache, D head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "rlhf_decode"


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(query · keyᵀ · scaling + mask) · value. Query [B, H, T, D], key and value [B, K, S, D]; `attention_mask`
    is added for one-token queries ([B, 1, 1, S]) and says what counts for longer ones. Returns [B, T, H, D]."""
    rows, heads, length, size = query.shape
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[return-value]
    scale = size**-0.5 if scaling is None else scaling
    if scale != 1.0:
        query = query * scale
    scores = query.view(rows, key.shape[1], -1, size) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores += attention_mask
    return (scores.softmax(dim=-1) @ value).view(rows, 1, heads, -1), None


AttentionInterface.register(NAME, decode_attention)


def is_served(lm: Any) -> bool:
    """Whether a model's attention goes through transformers' interface and is plain causal attention: no windows, no
    soft caps, no sinks."""
    config = lm.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    special = ("attn_logit_softcapping", "attention_chunk_size", "is_encoder_decoder", "add_cross_attention")
    return bool(
        getattr(lm, "_supports_sdpa", False)
        and getattr(lm.base_model, "_supports_attention_backend", False)
        and config._attn_implementation in ("sdpa", "eager")
        and not window
        and kinds == {"full_attention"}
        and not any(getattr(config, name, None) for name in special)
        and not any(name.endswith("sinks") for name, _ in lm.named_parameters())
        and not getattr(config, "reorder_and_upcast_attn", False)
    )


class served:
    """While inside, a model's attention is `decode_attention`. Made once and entered for every token, so it is lean."""

    def __init__(self, lm: Any) -> None:
        self.config = lm.config.get_text_config()
        self.before = self.config._attn_implementation

    def __enter__(self) -> None:
        self.config._attn_implementation = NAME

    def __exit__(self, *_: object) -> None:
        self.config._attn_implementation = self.before
