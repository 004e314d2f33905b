"""Tensor parallelism of the inference copy: the plan of the cut and the cut layers (Shoeybi et al. 2019).

A column layer holds some of the outputs (whole heads), a row layer some of the inputs; the sum over a row layer's ranks
is the only communication of a block. The plan comes from transformers' own `base_model_tp_plan` if a family has one,
else from `FAMILIES`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.errors import ConfigError
from step3_ppo.hybrid.parallel_sizes import sizes_that_divide

# Names of cuts in transformers' plans; everything else in them stays whole on every rank.
_STYLES = {"colwise": "column", "rowwise": "row"}
_WHOLE = ("replicated", "sequence_parallel")


@dataclass(frozen=True)
class Family:
    """How a model type is cut: layer names (with `*`) → "column", "row" or "thirds" (queries, keys, values side by
    side); for each attention class, its attributes that shrink with the heads (numbers of heads, sizes)."""

    plan: dict[str, str]
    shrink: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sliced_bias: str | None = None  # the attention class that gets ALiBi's [B·H, 1, T] of all heads


FAMILIES = {
    "opt": Family(
        plan={
            "*.self_attn.[qkv]_proj": "column",
            "*.self_attn.out_proj": "row",
            "*.layers.*.fc1": "column",
            "*.layers.*.fc2": "row",
        },
        shrink={"OPTAttention": ("num_heads",)},
    ),
    "gpt2": Family(
        plan={"*.attn.c_attn": "thirds", "*.attn.c_proj": "row", "*.mlp.c_fc": "column", "*.mlp.c_proj": "row"},
        shrink={"GPT2Attention": ("num_heads", "split_size")},
    ),
    "bloom": Family(
        plan={
            "*.self_attention.query_key_value": "column",
            "*.self_attention.dense": "row",
            "*.mlp.dense_h_to_4h": "column",
            "*.mlp.dense_4h_to_h": "row",
        },
        shrink={"BloomAttention": ("num_heads", "hidden_size")},
        sliced_bias="BloomAttention",
    ),
}


def family_of(config: Any) -> Family:
    """The family of a model. Raises ConfigError for a model that can only be copied whole."""
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    plan = getattr(config, "base_model_tp_plan", None) or {}
    unknown = {style for style in plan.values() if style not in _STYLES and not style.startswith(_WHOLE)}
    if not plan or unknown:
        why = (
            f"its plan has layers cut by {', '.join(sorted(unknown))}" if unknown else "transformers has no plan for it"
        )
        raise ConfigError(
            f"step3_ppo.inference_tp_size: a model of type {config.model_type} cannot be cut for tensor parallelism "
            f"({why}); use 1"
        )
    return Family(plan={f"*{name}": _STYLES[style] for name, style in plan.items() if style in _STYLES})


def style_of(family: Family, name: str) -> str | None:
    """The cut of the layer with this name; None if it stays whole."""
    return next((style for pattern, style in family.plan.items() if fnmatch.fnmatchcase(name, pattern)), None)


class ShardedLinear(nn.Module):
    """One rank's part of a linear layer, always in the layout [outputs, inputs].

    `take_weight` and `take_bias` cut this rank's part out of the whole.
    """

    def __init__(self, original: Any, style: str, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.style, self.group = style, group
        self.ranks, self.index = dist.get_world_size(group), dist.get_rank(group)
        self.transposed = isinstance(original, Conv1D)
        outputs, inputs = original.weight.shape[::-1] if self.transposed else original.weight.shape
        shape = (outputs, inputs // self.ranks) if style == "row" else (outputs // self.ranks, inputs)
        like = original.weight
        self.weight = nn.Parameter(like.new_empty(shape), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if getattr(original, "bias", None) is not None:
            size = outputs if style == "row" else outputs // self.ranks
            self.bias = nn.Parameter(like.new_empty(size), requires_grad=False)

    def take_weight(self, whole: Tensor) -> Tensor:
        if self.transposed:
            whole = whole.t()
        return whole.chunk(self.ranks, dim=1)[self.index] if self.style == "row" else self._outputs(whole)

    def take_bias(self, whole: Tensor) -> Tensor:
        return whole if self.style == "row" else self._outputs(whole)

    def _outputs(self, whole: Tensor) -> Tensor:
        """This rank's share of the outputs; of queries, keys and values each, if they are side by side."""
        parts = whole.chunk(3, dim=0) if self.style == "thirds" else (whole,)
        mine = [part.chunk(self.ranks, dim=0)[self.index] for part in parts]
        return mine[0] if len(mine) == 1 else torch.cat(mine)

    def forward(self, x: Tensor) -> Tensor:
        if self.style != "row":
            return F.linear(x, self.weight, self.bias)
        partial = F.linear(x, self.weight)
        dist.all_reduce(partial, group=self.group)
        return partial if self.bias is None else partial + self.bias


def shard(model: Any, group: dist.ProcessGroup) -> None:
    """Replace a model's layers by this rank's parts (on the meta device: nothing is allocated)."""
    config, ranks = model.config.get_text_config(), dist.get_world_size(group)
    family = family_of(config)
    if ranks not in sizes_that_divide(config.to_dict()):
        raise ConfigError(
            f"step3_ppo.inference_tp_size={ranks} does not divide the model's heads and layers; "
            f"try {', '.join(map(str, sizes_that_divide(config.to_dict())))}"
        )
    cut = 0
    for name, module in list(model.named_modules()):
        style = style_of(family, name)
        if style is not None:
            model.set_submodule(name, ShardedLinear(module, style, group))
            cut += 1
    assert cut, f"no layer of {config.model_type} matches its plan"
    index = dist.get_rank(group)
    for module in model.modules():
        for attribute in family.shrink.get(type(module).__name__, ()):
            setattr(module, attribute, getattr(module, attribute) // ranks)
        if type(module).__name__ == family.sliced_bias:
            module.register_forward_pre_hook(_own_heads_of_alibi(ranks, index), with_kwargs=True)


def _own_heads_of_alibi(ranks: int, index: int) -> Callable[..., Any]:
    """A hook that keeps this rank's heads of ALiBi's bias [B·H, 1, T]."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        alibi, heads = kwargs["alibi"], module.num_heads
        by_head = alibi.view(-1, heads * ranks, *alibi.shape[1:])
        mine = by_head[:, index * heads : (index + 1) * heads].flatten(0, 1)
        return args, {**kwargs, "alibi": mine}

    return hook
