"""Pure tensor functions: whitening, padding, log-probabilities from hidden states.

B sequences, T tokens of a sequence, V vocabulary, D hidden, N counted tokens of a batch (flat).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.models.logprob_function import Logits, TargetLogprobs


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """(x − mean) / √(variance + 1e-8) over the counted entries; 0 where not counted.

    Two passes and the biased variance (Huang et al. 2024). `keep_mean` leaves the mean where it was.
    `[1, 3] → [−1, 1]`.
    """
    count = float(mask.sum())
    if count == 0:
        return torch.zeros_like(x)
    mean = float(x[mask].sum()) / count
    squares = float(((x[mask] - mean).double() ** 2).sum())
    whitened = (x - mean) * (squares / count + 1e-8) ** -0.5 + (mean if keep_mean else 0.0)
    return torch.where(mask, whitened, 0.0)


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Lists of ids as one tensor [B, T], shorter ones filled with `value`. T is the longest's length, at least 1."""
    width = max([len(row) for row in rows] + [1])
    out = torch.full((len(rows), width), value, dtype=torch.long)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return out


def chunked_logprobs(
    hidden_ND: Tensor,
    targets_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    cap: float = 0.0,
    forbidden_N: Tensor | None = None,
    forbidden_ids: Sequence[int] = (),
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at the targets, and the entropy of that distribution: [N] each, fp32, in nats.

    `scale` and `cap` as in `Logits`. Where `forbidden_N` is True the logits of `forbidden_ids` are −∞: so it is with
    the end token below the minimum length. The entropy is zeros without `with_entropy`. Only one block of the logits
    exists at a time (`logprob_function`).
    """
    logits = Logits(temperature, scale, cap)
    return TargetLogprobs.apply(  # type: ignore[return-value]
        hidden_ND, weight_VD, bias_V, targets_N, logits, forbidden_N, tuple(forbidden_ids), with_entropy
    )


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's r of two vectors; 0 where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else 0.0
