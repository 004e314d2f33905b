"""The forward pass of Llama-like models for sampling, in as few operations per layer as possible.

For the models that a CPU samples from, half of the time of a token in transformers goes into starting operations: a
layer has some 45 small ones. Here it has about 20, on the same modules and weights. Other families go through
transformers.

B rows, T tokens of each, H query heads, K key-value heads, G = H / K, E head size, C positions, S columns of the
cache, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.generation.kv_cache import SamplerCache
from rlhf.generation.lean_families import NORM_OFFSETS, unlean
from rlhf.models.attention import products, suits_products

# Layers of the same input that may have been made into one: its name → the layers that it is made of.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

Function = Callable[[Tensor], Any]


@dataclass
class _Layer:
    attention_norm: Function
    queries_keys_values: Function  # [..., D] → [..., H + 2K, E]
    head_norms: tuple[Function, Function] | None  # of queries and of keys
    output: Function
    mlp_norm: Function
    gate_and_up: Function
    activation: Function
    down: Function


def is_lean(lm: Any) -> bool:
    """Whether `LeanForward` knows a model. Its attention must also be plain (`attention.is_served`)."""
    return not unlean(lm.config.to_dict())


class LeanForward:
    """The hidden states of a model's last column. Call `begin` before each generation, because weights may have
    changed; then call the object, for prompts and for single tokens.

    `compiled`: the forward of single tokens goes through torch.compile, once for all batch sizes and lengths.
    """

    def __init__(self, lm: Any, *, compiled: bool = False) -> None:
        self._token = torch.compile(self._run, dynamic=True) if compiled else self._run
        self.model = lm.base_model
        self.norm_offset = NORM_OFFSETS[lm.config.model_type]
        attention = self.model.layers[0].self_attn
        self.head_size, self.scale = int(attention.head_dim), float(attention.scaling)
        self.group = int(attention.num_key_value_groups)
        self._norm_weights: dict[Any, Tensor] = {}
        self.cos_CE: Tensor | None = None
        self.sin_CE: Tensor | None = None

    def begin(self, capacity: int) -> None:
        """Read the weights of the norms, and compute the rotary tables of the first `capacity` positions. They stay
        where they are in memory if there is room, as graphs of a step read them there."""
        self.layers = [self._layer(layer) for layer in self.model.layers]
        self.final_norm = self._norm(self.model.norm)
        weight = self.model.norm.weight
        cos_1CE, sin_1CE = self.model.rotary_emb(weight, torch.arange(capacity, device=weight.device)[None])
        # rotation negates the half that moves to the front; the sign is put into the table
        sin_CE = sin_1CE[0].clone()
        sin_CE[:, : self.head_size // 2].neg_()
        self.cos_CE, self.sin_CE = _in_place(self.cos_CE, cos_1CE[0]), _in_place(self.sin_CE, sin_CE)

    def tensors(self) -> Iterator[Tensor]:
        """All that a forward reads: weights, buffers, and what `begin` made."""
        yield from (*self.model.parameters(), *self.model.buffers(), *self._norm_weights.values())
        yield from (table for table in (self.cos_CE, self.sin_CE) if table is not None)

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        fused = getattr(attention, "qkv_proj", None)
        both = getattr(mlp, "gate_up_proj", None)
        return _Layer(
            attention_norm=self._norm(layer.input_layernorm),
            queries_keys_values=fused
            or (lambda x: torch.cat((attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)), dim=-1)),
            head_norms=(
                (self._norm(attention.q_norm), self._norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
            ),
            output=attention.o_proj,
            mlp_norm=self._norm(layer.post_attention_layernorm),
            gate_and_up=(lambda x: both(x).chunk(2, dim=-1)) if both else lambda x: (mlp.gate_proj(x), mlp.up_proj(x)),
            activation=mlp.act_fn,
            down=mlp.down_proj,
        )

    def _norm(self, module: Any) -> Function:
        shape = tuple(module.weight.shape)
        if not self.norm_offset:
            weight, eps = module.weight, module.variance_epsilon
            return lambda x: F.rms_norm(x, shape, weight, eps)
        weight_fp32, eps = module.weight.float() + self.norm_offset, module.eps
        weight_fp32 = self._norm_weights[module] = _in_place(self._norm_weights.get(module), weight_fp32)
        return lambda x: F.rms_norm(x.float(), shape, weight_fp32, eps).to(x.dtype)

    def __call__(self, ids_BT: Tensor, positions_BT: Tensor, cache: SamplerCache, attention: Tensor | None) -> Tensor:
        """Hidden states of the last column: [B, D]. Keys and values go where the cache says.

        For prompts `attention` [B, 1, T, T] is True where a token may look, and None is causal. For single tokens it
        is [B, 1, 1, S], 0 or −∞, and is added to the scores.
        """
        return (self._run if cache.prefilling else self._token)(ids_BT, positions_BT, cache, attention)

    def _run(self, ids_BT: Tensor, positions_BT: Tensor, cache: SamplerCache, attention: Tensor | None) -> Tensor:
        rows, length = ids_BT.shape
        half, group = self.head_size // 2, self.group
        assert self.cos_CE is not None and self.sin_CE is not None, "`begin` comes first"
        cos_BT1E, sin_BT1E = self.cos_CE[positions_BT, None], self.sin_CE[positions_BT, None]
        x = self.model.embed_tokens(ids_BT)
        bias: Tensor | None = None
        for index, layer in enumerate(self.layers):
            mixed = layer.queries_keys_values(layer.attention_norm(x)).view(rows, length, -1, self.head_size)
            key_heads = mixed.shape[2] // (group + 2)
            heads = group * key_heads
            turning, value = mixed[:, :, : heads + key_heads], mixed[:, :, heads + key_heads :]
            if layer.head_norms is not None:
                of_queries, of_keys = layer.head_norms
                turning = torch.cat((of_queries(turning[:, :, :heads]), of_keys(turning[:, :, heads:])), dim=2)
            swapped = torch.cat((turning[..., half:], turning[..., :half]), dim=-1)
            turned = torch.addcmul(turning * cos_BT1E, swapped, sin_BT1E)
            query, key = turned[:, :, :heads], turned[:, :, heads:]
            cache.write(index, key.transpose(1, 2), value.transpose(1, 2))
            if cache.prefilling:
                found = self._read(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attention)
            else:
                keys, values = cache.flat(index, rows)  # [B·K, S, E]
                if bias is None:
                    assert attention is not None
                    bias = attention.expand(rows, key_heads, 1, -1).reshape(rows * key_heads, 1, -1)
                query = query.reshape(rows * key_heads, group, self.head_size)
                scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=self.scale)
                found = torch.bmm(scores.softmax(dim=-1), values)
            x = x + layer.output(found.reshape(rows, length, -1))
            gate, up = layer.gate_and_up(layer.mlp_norm(x))
            x = x + layer.down(layer.activation(gate).mul_(up))
        return self.final_norm(x[:, -1])

    def _read(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of prompts to themselves: [B, T, H, E], from query [B, H, T, E], key and value [B, K, T, E]."""
        if suits_products(query, key):
            return products(query, key, value, mask, self.scale)
        grouped = self.group > 1
        if grouped and mask is not None and query.is_cuda:
            # with a mask and groups torch has no fused kernel for GPUs, and writes all scores in fp32
            key, value = (x.repeat_interleave(self.group, dim=1) for x in (key, value))
            grouped = False
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        ).transpose(1, 2)


def _in_place(before: Tensor | None, value: Tensor) -> Tensor:
    """`value`, written over the first rows of `before` if it has room for them."""
    if before is None or len(before) < len(value):
        return value
    if (before.dtype, before.device, before.shape[1:]) != (value.dtype, value.device, value.shape[1:]):
        return value
    before[: len(value)] = value
    return before
