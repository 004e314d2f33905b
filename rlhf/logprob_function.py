"""Log-probabilities of targets from hidden states, with a backward that computes the logits again, block by block.

N tokens, V vocabulary, D hidden. With z = s·(h·Wᵀ + b) and p = softmax(z) the gradients are written out by hand:
∂ log p_t / ∂z = onehot_t − p and ∂ entropy / ∂z = −p·(log p + entropy). Element-wise work on a whole [N, V] is bound by
memory; on a block of few rows it stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ENTRIES = 1 << 21  # logits of a block on a CPU: 8 MB in fp32
BLOCK_ROWS_ON_ACCELERATORS = 1024


def block_rows(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits are worked on at a time."""
    if device.type != "cpu":
        return BLOCK_ROWS_ON_ACCELERATORS
    return min(max(BLOCK_ENTRIES // vocabulary, 16), 512)


def scaled_logits(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, factor: float, forbidden: Tensor | None, ids: Tensor
) -> Tensor:
    """z of a block in fp32; −∞ at `ids` in the rows where `forbidden` is True."""
    z = F.linear(hidden_ND, weight_VD, bias_V).float()
    if factor != 1.0:
        z = z.mul_(factor) if not z.requires_grad else z * factor
    if forbidden is not None:
        z[forbidden.nonzero(), ids] = float("-inf")
    return z


class TargetLogprobs(torch.autograd.Function):
    """(hidden, weight, bias, targets, factor, forbidden, ids, with_entropy, chunk) → log-probabilities and entropy [N].

    At most `chunk` rows of probabilities exist in backward, in the weights' dtype, and one block in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        factor: float,
        forbidden_N: Tensor | None,
        ids: Tensor,
        with_entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        count = len(targets_N)
        logprobs_N = torch.zeros(count, device=hidden_ND.device)
        entropy_N, normaliser_N = torch.zeros_like(logprobs_N), torch.zeros_like(logprobs_N)
        for rows in _blocks(count, block_rows(len(weight_VD), hidden_ND.device)):
            forbidden = None if forbidden_N is None else forbidden_N[rows]
            z = scaled_logits(hidden_ND[rows], weight_VD, bias_V, factor, forbidden, ids)
            chosen = z.gather(1, targets_N[rows, None])[:, 0]
            largest = z.amax(dim=-1)
            weights = (z - largest[:, None]).exp_() if with_entropy else z.sub_(largest[:, None]).exp_()
            total = weights.sum(dim=-1)
            normaliser_N[rows] = total.log() + largest
            logprobs_N[rows] = chosen - normaliser_N[rows]
            if with_entropy:
                expected = weights.mul_(z.masked_fill_(z.isinf(), 0.0)).sum(dim=-1) / total
                entropy_N[rows] = normaliser_N[rows] - expected
        # weight and bias are leaves that ZeRO-3 gathers again for backward, so they are kept by reference
        ctx.weight, ctx.bias = weight_VD, bias_V
        ctx.options = factor, with_entropy, chunk, ids
        ctx.save_for_backward(hidden_ND, targets_N, forbidden_N, normaliser_N, entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs_N, grad_entropy_N = grads
        hidden_ND, targets_N, forbidden_N, normaliser_N, entropy_N = ctx.saved_tensors
        weight_VD, bias_V = ctx.weight, ctx.bias
        factor, with_entropy, chunk, ids = ctx.options
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros(0) if wants_weight else None
        grad_bias = torch.zeros(len(weight_VD), device=hidden_ND.device) if wants_bias else None
        size = block_rows(len(weight_VD), hidden_ND.device)
        for outer in _blocks(len(targets_N), chunk):
            hidden = hidden_ND[outer]
            slopes = hidden.new_empty((len(hidden), len(weight_VD)))  # of the logits before the factor
            for inner in _blocks(len(hidden), size):
                rows = slice(outer.start + inner.start, outer.start + inner.stop)
                forbidden = None if forbidden_N is None else forbidden_N[rows]
                z = scaled_logits(hidden[inner], weight_VD, bias_V, factor, forbidden, ids)
                z.sub_(normaliser_N[rows, None])
                g = grad_logprobs_N[rows, None].float() * factor
                if with_entropy:
                    e = grad_entropy_N[rows, None].float() * factor
                    p = z.exp()
                    # p·(log p + entropy) with p = 0 at −∞ is 0, not NaN
                    z.masked_fill_(z.isinf(), 0.0).add_(entropy_N[rows, None]).mul_(-e).sub_(g).mul_(p)
                else:
                    z.exp_().mul_(-g)
                z.scatter_add_(1, targets_N[rows, None], g)
                slopes[inner] = z
                if grad_bias is not None:
                    grad_bias += z.sum(dim=0)
            if grad_hidden is not None:
                grad_hidden[outer] = slopes @ weight_VD
            if grad_weight is not None:
                part = slopes.t() @ hidden
                grad_weight = part if not len(grad_weight) else grad_weight.float().add_(part)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VD.dtype) if len(grad_weight) else torch.zeros_like(weight_VD)
        bias = None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype)
        return grad_hidden, grad_weight, bias, None, None, None, None, None, None


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
