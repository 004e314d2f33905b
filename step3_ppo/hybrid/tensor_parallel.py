"""Tensor parallelism of the inference copy: a model's layers are replaced by one rank's parts of them.

Which layers, and how, is said by `parallel_plans`. A cut module has `take(key, whole)`: this rank's part of its
parameter `key`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.errors import ConfigError
from step3_ppo.hybrid.parallel_plans import family_of, style_of
from step3_ppo.hybrid.parallel_sizes import parallel_problems

_PARTS_SIDE_BY_SIDE = {"pairs": 2, "thirds": 3}


def part_of(whole: Tensor, style: str, ranks: int, index: int) -> Tensor:
    """One rank's part of a weight [..., outputs, inputs] or of a vector over the outputs."""
    if style == "once":
        return whole if index == 0 else torch.zeros_like(whole)
    way, _, many = style.partition(" ")
    dim = -2 if way in ("column", "gathered") and whole.dim() > 1 else -1
    blocks = whole.chunk(_PARTS_SIDE_BY_SIDE.get(many, 1), dim=dim)
    size = blocks[0].shape[dim]
    assert size % ranks == 0, f"{size} rows or columns for {ranks} ranks"
    mine = [block.chunk(ranks, dim=dim)[index] for block in blocks]
    return mine[0] if len(mine) == 1 else torch.cat(mine, dim=dim)


class ShardedLinear(nn.Module):
    """One rank's part of a linear layer, always in the layout [outputs, inputs]."""

    def __init__(self, original: Any, style: str, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.style, self.group = style, group
        self.ranks, self.index = dist.get_world_size(group), dist.get_rank(group)
        self.transposed = isinstance(original, Conv1D)
        self.sums = style in ("row", "split")
        self.weight = _empty(self.take("weight", original.weight))
        self.bias: nn.Parameter | None = None
        if getattr(original, "bias", None) is not None:
            self.bias = _empty(self.take("bias", original.bias))

    def take(self, key: str, whole: Tensor) -> Tensor:
        if key == "bias":
            return whole if self.sums else part_of(whole, self.style, self.ranks, self.index)
        return part_of(whole.t() if self.transposed else whole, self.style, self.ranks, self.index)

    def forward(self, x: Tensor) -> Tensor:
        if not self.sums:
            mine = F.linear(x, self.weight, self.bias)
            return self._gather(mine) if self.style == "gathered" else mine
        if self.style == "split":
            x = x.chunk(self.ranks, dim=-1)[self.index]
        partial_sum = F.linear(x, self.weight)
        dist.all_reduce(partial_sum, group=self.group)
        return partial_sum if self.bias is None else partial_sum + self.bias

    def _gather(self, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(self.ranks)]
        dist.all_gather(parts, mine.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


def _empty(like: Tensor) -> nn.Parameter:
    return nn.Parameter(like.new_empty(like.shape), requires_grad=False)


def shard(model: Any, group: dist.ProcessGroup) -> None:
    """Replace a model's layers by this rank's parts (on the meta device: nothing is allocated)."""
    config, ranks, index = model.config.get_text_config(), dist.get_world_size(group), dist.get_rank(group)
    if problems := parallel_problems(config.to_dict(), model="the actor", size=ranks):
        raise ConfigError(*problems)
    family, decoder = family_of(config), model.get_decoder()
    cut = 0
    for name, module in list(decoder.named_modules()):
        style = style_of(family, name)
        if style == "summed":
            module.register_forward_hook(partial(_sum_over_ranks, group=group))
        elif style is not None:
            decoder.set_submodule(name, ShardedLinear(module, style, group))
            cut += 1
        cut += _cut_own(module, {key: style_of(family, f"{name}.{key}") for key in module._parameters}, ranks, index)
    assert cut, f"no layer of {config.model_type} matches its plan"
    for module in decoder.modules():
        for attribute in family.shrink.get(type(module).__name__, ()):
            setattr(module, attribute, getattr(module, attribute) // ranks)
        if type(module).__name__ == family.sliced_bias:
            module.register_forward_pre_hook(_own_heads_of_alibi(ranks, index), with_kwargs=True)


def _cut_own(module: Any, styles: dict[str, str | None], ranks: int, index: int) -> int:
    """Cut the parameters that a module holds itself; returns how many."""
    chosen = {key: style for key, style in styles.items() if style is not None}

    def take(key: str, whole: Tensor) -> Tensor:
        return part_of(whole, chosen[key], ranks, index) if key in chosen else whole

    if chosen:
        module.take = take
    for key in chosen:
        module._parameters[key] = _empty(take(key, module._parameters[key]))
    return len(chosen)


def _sum_over_ranks(module: Any, args: Any, output: Tensor, *, group: dist.ProcessGroup) -> Tensor:
    dist.all_reduce(output, group=group)
    return output


def _own_heads_of_alibi(ranks: int, index: int) -> Callable[..., Any]:
    """A hook that keeps this rank's heads of ALiBi's bias [B·H, 1, T]."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        alibi, heads = kwargs["alibi"], module.num_heads
        by_head = alibi.view(-1, heads * ranks, *alibi.shape[1:])
        mine = by_head[:, index * heads : (index + 1) * heads].flatten(0, 1)
        return args, {**kwargs, "alibi": mine}

    return hook
