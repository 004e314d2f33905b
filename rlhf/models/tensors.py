"""Pure tensor functions: masks, masked means, whitening, log-probabilities from hidden states.

B sequences, T tokens of a sequence, R response tokens, V vocabulary, D hidden size, N counted tokens of a batch (flat).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.models.logprob_function import Logits, TargetLogprobs

IGNORE_INDEX = -100
SumOverRanks = Callable[..., list[float]]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` is True; 0 where nothing counts."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def local_sums(*values: float | int | Tensor) -> list[float]:
    """The sums of one rank alone: what to pass where several ranks pass `sum_over_ranks`."""
    return [float(v) for v in values]


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False, sums: SumOverRanks = local_sums) -> Tensor:
    """(x − mean) / √(variance + 1e-8) over the counted entries; 0 where not counted.

    `[1, 3] → [−1, 1]`. The variance is the biased one (Huang et al. 2024), found in a second pass. `sums` adds up over
    ranks, so that mean and variance are those of the whole batch. `keep_mean` adds the mean again.
    """
    count, total = sums(mask.sum(), x[mask].sum())
    if count == 0:
        return torch.zeros_like(x)
    mean = total / count
    (squares,) = sums(((x[mask] - mean).double() ** 2).sum())
    whitened = (x - mean) * (squares / count + 1e-8) ** -0.5 + (mean if keep_mean else 0.0)
    return torch.where(mask, whitened, 0.0)


def truncate_after_eos(ids_BR: Tensor, stop_ids: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor]:
    """Cut each response after its first stop token: `[5, 2, 9] → [5, 2, pad]` with stop id 2.

    Returns the ids [B, R] and the mask [B, R] that is True up to the stop token and there. An id that equals `pad_id`
    but comes before the stop token is content, so it counts.
    """
    stops = torch.isin(ids_BR, torch.tensor(list(stop_ids), device=ids_BR.device))
    mask_BR = stops.int().cumsum(dim=1) - stops.int() == 0
    return torch.where(mask_BR, ids_BR, pad_id), mask_BR


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
