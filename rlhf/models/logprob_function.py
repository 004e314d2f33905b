"""Log-probabilities of target tokens from hidden states, with one block of the logits at a time.

N tokens, V vocabulary, D hidden size. The whole table of logits [N, V] would be gigabytes, and element-wise work on it
would wait for memory. A block of some rows and columns stays in the processor's cache, and is still large enough for a
fast matrix product. Backward computes each block again. Sums over the vocabulary are kept relative to the largest logit
so far, and rescaled when a block has a larger one.

The gradients are written out by hand. With z the logits and p = softmax(z):
∂ log p_t / ∂z = onehot_t − p, and ∂ entropy / ∂z = −p·(log p + entropy).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The largest block: its rows, and its rows × columns. In fp32 that is 2 MB on CPUs and 128 MB on GPUs.
ROWS, ENTRIES = 512, 1 << 19
ROWS_ON_ACCELERATORS, ENTRIES_ON_ACCELERATORS = 1024, 1 << 25


class Logits(NamedTuple):
    """How logits z come from the product x of hidden states and output embedding.

    With a cap z = cap·tanh(scale·x / cap) / temperature; without one (0) z = scale·x / temperature.
    """

    temperature: float = 1.0
    scale: float = 1.0
    cap: float = 0.0

    @property
    def factor(self) -> float:
        """∂z / ∂x where the cap does not bend it."""
        return self.scale / self.temperature

    def of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """z in fp32: [..., V]."""
        return self.shape(F.linear(hidden, weight, bias).float())

    def shape(self, x: Tensor) -> Tensor:
        """z of a product x in fp32. It may be x itself, when nothing is to be done."""
        if self.cap:
            return torch.tanh(x * (self.scale / self.cap)) * (self.cap / self.temperature)
        return x if self.factor == 1.0 else x * self.factor

    def bend(self, z: Tensor) -> Tensor | None:
        """The share of the slope that the cap leaves at z: ∂z / ∂x = factor · bend. None without a cap: it is 1."""
        return 1.0 - (z * (self.temperature / self.cap)).square_() if self.cap else None


class TargetLogprobs(torch.autograd.Function):
    """Log-probabilities of targets and the entropy, [N] each, in fp32, in nats; `tensors.chunked_logprobs` calls it.

    Where `forbidden_N` is True the ids `ids` have probability 0. The entropy is zeros without `with_entropy`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        logits: Logits,
        forbidden_N: Tensor | None,
        ids: tuple[int, ...],
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        chosen_N = torch.zeros(len(targets_N), device=hidden_ND.device)
        entropy_N, normaliser_N = torch.zeros_like(chosen_N), torch.zeros_like(chosen_N)
        for rows in row_blocks(hidden_ND):
            hidden = hidden_ND[rows]
            largest = torch.full((len(hidden), 1), torch.finfo(torch.float32).min, device=hidden.device)
            total, expected = torch.zeros_like(largest), torch.zeros_like(largest)
            for columns in column_blocks(hidden, weight_VD):
                z = logits.of(hidden, weight_VD[columns], None if bias_V is None else bias_V[columns])
                hit = _forbid(z, columns, forbidden_N, ids, rows)
                inside, place = _places(targets_N[rows], columns)
                chosen_N[rows] = z.gather(1, place)[:, 0].where(inside, chosen_N[rows])
                before, largest = largest, torch.maximum(largest, z.amax(dim=1, keepdim=True))
                rescale = (before - largest).exp_()
                if with_entropy:
                    weights = (z - largest).exp_()
                    if hit:  # weight 0 times −∞
                        z.masked_fill_(z.isinf(), 0.0)
                    expected = expected * rescale + z.mul_(weights).sum(dim=1, keepdim=True)
                else:
                    weights = z.sub_(largest).exp_()
                total = total * rescale + weights.sum(dim=1, keepdim=True)
            normaliser_N[rows] = (total.log() + largest)[:, 0]
            if with_entropy:
                entropy_N[rows] = normaliser_N[rows] - (expected / total)[:, 0]
        # ZeRO-3 gathers weight and bias again for backward, so these are kept themselves and not as saved tensors
        ctx.weight, ctx.bias = weight_VD, bias_V
        ctx.options = logits, ids
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, targets_N, forbidden_N, normaliser_N, entropy_N)
        return chosen_N - normaliser_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, targets_N, forbidden_N, normaliser_N, entropy_N = ctx.saved_tensors
        weight_VD, bias_V = ctx.weight, ctx.bias
        logits, ids = ctx.options
        of_logprobs, of_entropy = grads  # None where the loss has none of them
        grad_logprobs_N = logits.factor * (torch.zeros_like(normaliser_N) if of_logprobs is None else of_logprobs)
        grad_entropy_N = None if of_entropy is None else logits.factor * of_entropy
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros(hidden_ND.shape, device=hidden_ND.device) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if wants_weight else None
        grad_bias = torch.zeros(len(weight_VD), device=hidden_ND.device) if wants_bias else None
        for columns in column_blocks(hidden_ND, weight_VD):
            weight, bias = weight_VD[columns], None if bias_V is None else bias_V[columns]
            sums: Tensor | None = None  # over several blocks of rows, in fp32
            for rows in row_blocks(hidden_ND):
                hidden, g = hidden_ND[rows], grad_logprobs_N[rows, None]
                z = logits.of(hidden, weight, bias)
                bend = logits.bend(z)
                hit = _forbid(z, columns, forbidden_N, ids, rows)
                z.sub_(normaliser_N[rows, None])
                if grad_entropy_N is not None:
                    p = z.exp()
                    if hit:  # p·(log p + entropy) with p = 0 at −∞ is 0, not NaN
                        z.masked_fill_(z.isinf(), 0.0)
                    z.add_(entropy_N[rows, None]).mul_(-grad_entropy_N[rows, None]).sub_(g).mul_(p)
                else:
                    z.exp_().mul_(-g)
                inside, place = _places(targets_N[rows], columns)
                z.scatter_add_(1, place, g.masked_fill(~inside[:, None], 0.0))
                if bend is not None:
                    z.mul_(bend)
                slopes = z.to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += slopes @ weight
                if grad_weight is not None and not rows.start:
                    torch.mm(slopes.t(), hidden, out=grad_weight[columns])
                elif grad_weight is not None:
                    sums = (grad_weight[columns].float() if sums is None else sums).add_(slopes.t() @ hidden)
                if grad_bias is not None:
                    grad_bias[columns] += z.sum(dim=0)
            if grad_weight is not None and sums is not None:
                grad_weight[columns] = sums
        hidden = None if grad_hidden is None else grad_hidden.to(hidden_ND.dtype)
        bias = None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype)
        return hidden, grad_weight, bias, None, None, None, None, None


def row_blocks(hidden_ND: Tensor) -> Iterator[slice]:
    """The tokens of each block."""
    return _blocks(len(hidden_ND), ROWS if hidden_ND.device.type == "cpu" else ROWS_ON_ACCELERATORS)


def column_blocks(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    """The part of the vocabulary of each block."""
    on_cpu = hidden_ND.device.type == "cpu"
    most, entries = (ROWS, ENTRIES) if on_cpu else (ROWS_ON_ACCELERATORS, ENTRIES_ON_ACCELERATORS)
    return _blocks(len(weight_VD), entries // max(min(len(hidden_ND), most), 1))


def _places(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block [n], and its column there [n, 1]; those outside get some column."""
    inside = (targets >= columns.start) & (targets < columns.stop)
    return inside, (targets - columns.start).clamp_(0, columns.stop - columns.start - 1)[:, None]


def _forbid(z: Tensor, columns: slice, forbidden_N: Tensor | None, ids: tuple[int, ...], rows: slice) -> bool:
    """Write −∞ at the forbidden ids of the block, in the rows that forbid them. Returns whether the block has any."""
    own = [i - columns.start for i in ids if columns.start <= i < columns.stop]
    if forbidden_N is None or not own:
        return False
    for column in own:
        z[:, column].masked_fill_(forbidden_N[rows], float("-inf"))
    return True


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
