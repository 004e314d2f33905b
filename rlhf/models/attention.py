"""Attention for two cases in which torch's own kernels are slow, registered with transformers under the name `rlhf`.

The first is a query of one token over the sampler's cache. Two batched products and a softmax cost far less than a
kernel that is made for long queries, above all in bf16 on CPUs. The second is a sequence of some hundred tokens in bf16
on CPUs that multiply in bf16. The same products, forward and backward, take a third of the time of torch's flash
attention there (on other CPUs twice as long). All other cases go to torch's kernel.

B rows, H query heads, K key-value heads, G = H / K, T tokens, S tokens of the cache, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.training import distributed

NAME = "rlhf"
# With more scores in a layer (here 16 MB in bf16), or more tokens, their memory costs more than the time is worth.
MOST_SCORES = 1 << 23
MOST_TOKENS = 512


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(query · keyᵀ · scaling + mask) · value: [B, T, H, E].

    Query [B, H, T, E], key and value [B, K, S, E]. A boolean `attention_mask` is True where a token may look; any other
    is added to the scores. Without a mask each token sees itself and those before it.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.shape[2] == 1 and not dropout:
        return _one_token(query, key, value, attention_mask, scale), None
    if not dropout and getattr(module, "is_causal", True) and suits_products(query, key):
        return products(query, key, value, attention_mask, scale), None
    return sdpa_attention_forward(  # type: ignore[return-value]
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )


def _one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    rows, heads, _, size = query.shape
    if scale != 1.0:
        query = query * scale
    scores = query.reshape(rows, key.shape[1], -1, size) @ key.transpose(2, 3)
    if mask is not None:
        scores += _added(mask, scores.dtype)
    return (scores.softmax(dim=-1) @ value).view(rows, 1, heads, -1)


def suits_products(query: Tensor, key: Tensor) -> bool:
    """Whether `products` is faster than torch's kernel for whole sequences, and has few enough scores to keep."""
    rows, heads, length, _ = query.shape
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and distributed.computes_in_bf16()
        and key.shape[2] == length <= MOST_TOKENS
        and rows * heads * length * length <= MOST_SCORES
    )


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of whole sequences by batched products: [B, T, H, E]. The query heads of a key head go in one product.

    `mask` [B or 1, 1, T, T] is as in `attention`; None is causal.
    """
    rows, heads, length, size = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    if mask is None:
        bias = query.new_full((length, length), float("-inf")).triu_(1).repeat(group, 1)[None]
    else:
        bias = _added(mask, query.dtype).expand(rows, heads, length, length)
        bias = bias.reshape(rows * key_heads, group * length, length)
    scores = torch.baddbmm(
        bias,
        query.reshape(rows * key_heads, group * length, size),
        key.reshape(rows * key_heads, length, size).transpose(1, 2),
        alpha=scale,
    )
    found = torch.bmm(scores.softmax(dim=-1), value.reshape(rows * key_heads, length, -1))
    return found.view(rows, heads, length, -1).transpose(1, 2)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def has_windows(config: Any) -> bool:
    """Whether some layers of a text config see less than all tokens before, or no such tokens at all: not all layers
    are full attention."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return bool(window or getattr(config, "attention_chunk_size", None) or kinds != {"full_attention"})


def is_served(lm: Any) -> bool:
    """Whether `attention` can stand in for a model's own: the model calls attention through transformers' interface,
    and it is plain causal attention without windows, soft caps or sinks."""
    config = lm.config.get_text_config()
    special = ("attn_logit_softcapping", "is_encoder_decoder", "add_cross_attention")
    return bool(
        getattr(lm, "_supports_sdpa", False)
        and getattr(lm.base_model, "_supports_attention_backend", False)
        and config._attn_implementation in ("sdpa", "eager", NAME)
        and not has_windows(config)
        and not any(getattr(config, name, None) for name in special)
        and not any(name.endswith("sinks") for name, _ in lm.named_parameters())
        and not getattr(config, "reorder_and_upcast_attn", False)
    )


def serve_on_cpu(lm: Any) -> None:
    """Let a model on a CPU train and score with `attention`, if it `is_served` and the machine has no accelerator."""
    if next(lm.parameters()).device.type == "cpu" and not torch.accelerator.is_available() and is_served(lm):
        lm.config.get_text_config()._attn_implementation = NAME


class served:
    """While inside, a model's attention is `attention`; on leaving, what it was when this was made."""

    def __init__(self, lm: Any) -> None:
        self.config = lm.config.get_text_config()
        self.before = self.config._attn_implementation

    def __enter__(self) -> None:
        self.config._attn_implementation = NAME

    def __exit__(self, *_: object) -> None:
        self.config._attn_implementation = self.before
