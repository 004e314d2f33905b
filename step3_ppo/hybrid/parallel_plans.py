"""Which layers of a family are cut for tensor parallelism, and how (Shoeybi et al. 2019).

The plan comes from `FAMILIES`, else from transformers' own `base_model_tp_plan`. `parallel_sizes.CUTTABLE` says which
families may be cut at all; a plan is checked against it before torch is loaded.

Styles of linear layers: a "column" layer holds some of the outputs, a "row" layer some of the inputs, and the sum over
the ranks of a row layer is the only communication of a block. Where what lies between the two needs all of a token's
numbers (a norm over all heads, heads that are interleaved), a "gathered" layer holds some of the outputs and collects
the others, and a "split" layer takes its inputs out of whole ones: weights are cut, and what lies between is whole on
every rank.

Styles of parameters that a module holds itself (fused experts, sinks): "column" and "row" as above; "once" counts on
the first rank only, for a bias that is added before a sum. The output of a "summed" module is the sum over the ranks.

A column or row of "pairs" or "thirds" has two or three parts side by side (gates and what they gate; queries, keys and
values), each cut by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf.errors import ConfigError
from step3_ppo.hybrid.parallel_sizes import CUTTABLE, no_plan

# Styles of transformers' plans, by our names.
_STYLES = {
    "colwise": "column",
    "rowwise": "row",
    "packed_colwise": "column pairs",
    "packed_rowwise": "row pairs",
    "colwise_gather_output": "gathered",
    "rowwise_split_input": "split",
    "moe_tp_experts": "summed",
}
# Styles of layers that stay whole on every rank; they differ in their gradients, and an inference copy has none.
_WHOLE = ("replicated_with_grad_allreduce", "mla_kv_a_proj", "local_params")


@dataclass(frozen=True)
class Family:
    """How a model type is cut: names of layers and parameters below the decoder (with `*` for one part of a name) →
    style; for each attention class, its attributes that shrink with the heads (numbers of heads, sizes)."""

    plan: Mapping[str, str]
    shrink: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sliced_bias: str | None = None  # the attention class that gets ALiBi's [B·H, 1, T] of all heads


FAMILIES = {
    "opt": Family(
        plan={
            "layers.*.self_attn.[qkv]_proj": "column",
            "layers.*.self_attn.out_proj": "row",
            "layers.*.fc1": "column",
            "layers.*.fc2": "row",
        },
        shrink={"OPTAttention": ("num_heads",)},
    ),
    "gpt2": Family(
        plan={
            "h.*.attn.c_attn": "column thirds",
            "h.*.attn.c_proj": "row",
            "h.*.mlp.c_fc": "column",
            "h.*.mlp.c_proj": "row",
        },
        shrink={"GPT2Attention": ("num_heads", "split_size")},
    ),
    "bloom": Family(
        plan={
            "h.*.self_attention.query_key_value": "column",
            "h.*.self_attention.dense": "row",
            "h.*.mlp.dense_h_to_4h": "column",
            "h.*.mlp.dense_4h_to_h": "row",
        },
        shrink={"BloomAttention": ("num_heads", "hidden_size")},
        sliced_bias="BloomAttention",
    ),
    "gptj": Family(
        plan={
            "h.*.attn.[qkv]_proj": "column",
            "h.*.attn.out_proj": "row",
            "h.*.mlp.fc_in": "column",
            "h.*.mlp.fc_out": "row",
        },
        shrink={"GPTJAttention": ("num_attention_heads",)},
    ),
    "gpt_neo": Family(
        plan={
            "h.*.attn.attention.[qkv]_proj": "column",
            "h.*.attn.attention.out_proj": "row",
            "h.*.mlp.c_fc": "column",
            "h.*.mlp.c_proj": "row",
        },
        shrink={"GPTNeoSelfAttention": ("num_heads",)},
    ),
    "gpt_oss": Family(
        plan={
            "layers.*.self_attn.[qkv]_proj": "column",
            "layers.*.self_attn.sinks": "column",
            "layers.*.self_attn.o_proj": "row",
            # weights are [experts, inputs, outputs], with a gate beside what it gates
            "layers.*.mlp.experts.gate_up_proj": "row",
            "layers.*.mlp.experts.gate_up_proj_bias": "row",
            "layers.*.mlp.experts.down_proj": "column",
            "layers.*.mlp.experts.down_proj_bias": "once",
            "layers.*.mlp.experts": "summed",
        },
    ),
    # q- and k-norms of single heads may be modules of their own
    "stablelm": Family(
        plan={
            "layers.*.self_attn.[qkv]_proj": "gathered",
            "layers.*.self_attn.o_proj": "split",
            "layers.*.mlp.gate_proj": "column",
            "layers.*.mlp.up_proj": "column",
            "layers.*.mlp.down_proj": "row",
        }
    ),
    # fused queries, keys and values, in an order that depends on the config
    "falcon": Family(
        plan={
            "h.*.self_attention.query_key_value": "gathered",
            "h.*.self_attention.dense": "split",
            "h.*.mlp.dense_h_to_4h": "column",
            "h.*.mlp.dense_4h_to_h": "row",
        }
    ),
    "gpt_bigcode": Family(
        plan={
            "h.*.attn.c_attn": "gathered",
            "h.*.attn.c_proj": "split",
            "h.*.mlp.c_fc": "column",
            "h.*.mlp.c_proj": "row",
        }
    ),
    "mpt": Family(
        plan={
            "blocks.*.attn.Wqkv": "gathered",
            "blocks.*.attn.out_proj": "split",
            "blocks.*.ffn.up_proj": "column",
            "blocks.*.ffn.down_proj": "row",
        }
    ),
    "codegen": Family(
        plan={
            "h.*.attn.qkv_proj": "gathered",
            "h.*.attn.out_proj": "split",
            "h.*.mlp.fc_in": "column",
            "h.*.mlp.fc_out": "row",
        }
    ),
    "persimmon": Family(
        plan={
            "layers.*.self_attn.query_key_value": "gathered",
            "layers.*.self_attn.dense": "split",
            "layers.*.mlp.dense_h_to_4h": "column",
            "layers.*.mlp.dense_4h_to_h": "row",
        }
    ),
    "xglm": Family(
        plan={
            "layers.*.self_attn.[qkv]_proj": "column",
            "layers.*.self_attn.out_proj": "row",
            "layers.*.fc1": "column",
            "layers.*.fc2": "row",
        },
        shrink={"XGLMAttention": ("num_heads", "embed_dim")},
    ),
    "biogpt": Family(
        plan={
            "layers.*.self_attn.[qkv]_proj": "column",
            "layers.*.self_attn.out_proj": "row",
            "layers.*.fc1": "column",
            "layers.*.fc2": "row",
        },
        shrink={"BioGptAttention": ("num_heads",)},
    ),
}


def family_of(config: Any) -> Family:
    """The family of a model, by its config. Raises ConfigError for a model that can only be copied whole."""
    plan = getattr(config, "base_model_tp_plan", None) or {}
    known = config.model_type in FAMILIES or (plan and all(style in (*_STYLES, *_WHOLE) for style in plan.values()))
    if config.model_type not in CUTTABLE or not known:
        raise ConfigError(f"step3_ppo.inference_tp_size: {no_plan('the actor', config.model_type)}")
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    return Family(plan={name: _STYLES[style] for name, style in plan.items() if style in _STYLES})


def style_of(family: Family, name: str) -> str | None:
    """The style of the layer or parameter with this name below the decoder; None if it stays whole."""
    for pattern, style in family.plan.items():
        if re.fullmatch(pattern.replace(".", r"\.").replace("*", "[^.]+"), name):
            return style
    return None
