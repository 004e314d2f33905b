"""Pure tensor functions: masks, masked means, whitening, log-probabilities from hidden states.

B sequences, T tokens of a sequence, R response tokens, V vocabulary, D hidden, N counted tokens of a batch (flat).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.logprob_function import TargetLogprobs

IGNORE_INDEX = -100
CHUNK_TOKENS = 512
SumOverRanks = Callable[..., list[float]]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` is True; 0 where nothing counts."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def local_sums(*values: float | int | Tensor) -> list[float]:
    """The sums of one rank; stands where `sum_over_ranks` would for several."""
    return [float(v) for v in values]


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False, sums: SumOverRanks = local_sums) -> Tensor:
    """(x − mean) / √(variance + 1e-8) over the counted entries; 0 where not counted.

    Two passes and the biased variance (Huang et al. 2024). `sums` adds up over ranks, so that the statistics are
    those of the whole batch. `keep_mean` leaves the mean where it was. `[1, 3] → [−1, 1]`.
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

    Returns the ids and the mask [B, R] that is True up to and including the stop token. Ids alone cannot tell padding
    from content, so an id equal to `pad_id` before the stop counts.
    """
    stops = torch.isin(ids_BR, torch.tensor(list(stop_ids), device=ids_BR.device))
    mask_BR = stops.int().cumsum(dim=1) - stops.int() == 0
    return torch.where(mask_BR, ids_BR, pad_id), mask_BR


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Lists of ids as one tensor [B, T], T being the longest; at least one column."""
    width = max([len(row) for row in rows] + [1])
    out = torch.full((len(rows), width), value, dtype=torch.long)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return out


def logits_from_hidden(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float, cap: float) -> Tensor:
    """Output embedding, with the logit scale and the soft cap (0 is off) that some families put on top; fp32 [N, V]."""
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V).float()
    if scale != 1.0:
        logits_NV = logits_NV * scale
    return torch.tanh(logits_NV / cap) * cap if cap else logits_NV


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
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at the targets, and the entropy in nats, both [N] in fp32.

    Never more than `chunk` rows of logits exist: backward computes each chunk again. Where `forbidden_N` is True the
    logits of `forbidden_ids` are −∞ (the end token below the minimum length). Without `with_entropy` it is zeros.
    """

    if cap:
        return _by_checkpoint(
            hidden_ND,
            targets_N,
            weight_VD,
            bias_V,
            temperature=temperature,
            scale=scale,
            cap=cap,
            forbidden_N=forbidden_N if len(forbidden_ids) else None,
            forbidden_ids=forbidden_ids,
            with_entropy=with_entropy,
            chunk=chunk,
        )
    return TargetLogprobs.apply(  # type: ignore[return-value]
        hidden_ND,
        weight_VD,
        bias_V,
        targets_N,
        scale / temperature,
        forbidden_N if len(forbidden_ids) else None,
        torch.tensor(list(forbidden_ids), dtype=torch.long, device=hidden_ND.device),
        with_entropy,
        chunk,
    )


def _by_checkpoint(
    hidden_ND: Tensor,
    targets_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    *,
    temperature: float,
    scale: float,
    cap: float,
    forbidden_N: Tensor | None,
    forbidden_ids: Sequence[int],
    with_entropy: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same where a soft cap stands between logits and softmax: torch differentiates each chunk, computed again."""

    def scores(hidden: Tensor, targets: Tensor, forbidden: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = logits_from_hidden(hidden, weight_VD, bias_V, scale, cap) / temperature
        if forbidden is not None:
            columns = torch.tensor(list(forbidden_ids), device=logits.device)
            hit = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill(0, columns, True)
            logits = logits.masked_fill(forbidden[:, None] & hit, float("-inf"))
        log_normaliser = logits.logsumexp(dim=-1)
        chosen = logits.gather(1, targets[:, None])[:, 0] - log_normaliser
        if not with_entropy:
            return chosen, torch.zeros_like(chosen)
        # p log p with p = 0 at −∞ is 0, not NaN
        expected = (logits.softmax(dim=-1) * logits.masked_fill(logits.isinf(), 0.0)).sum(dim=-1)
        return chosen, log_normaliser - expected

    needs_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    parts = []
    for start in range(0, max(len(targets_N), 1), chunk):  # one chunk even of nothing: its backward must exist
        rows = slice(start, start + chunk)
        forbidden = forbidden_N[rows] if forbidden_N is not None else None
        arguments = (hidden_ND[rows], targets_N[rows], forbidden)
        parts.append(checkpoint(scores, *arguments, use_reentrant=False) if needs_grad else scores(*arguments))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's r of two vectors; 0 where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else 0.0
