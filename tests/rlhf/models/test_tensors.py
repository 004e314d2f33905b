"""Whitening, padding, and log-probabilities in chunks: worked by hand and against whole tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from rlhf.models import logprob_function
from rlhf.models.logprob_function import Logits
from rlhf.models.tensors import (
    chunked_logprobs,
    correlation,
    pad_right,
    whiten,
)


def test_whiten_by_hand() -> None:
    """Counted 1 and 3: mean 2, biased variance 1 → −1 and 1; the 50 does not count and becomes 0."""
    whitened = whiten(tensor([[1.0, 3.0, 50.0]]), tensor([[True, True, False]]))
    torch.testing.assert_close(whitened, tensor([[-1.0, 1.0, 0.0]]))


def test_whiten_of_equal_numbers_and_of_none() -> None:
    assert whiten(tensor([2.0, 2.0]), tensor([True, True])).tolist() == [0.0, 0.0]
    assert whiten(tensor([2.0, math.nan]), tensor([False, False])).tolist() == [0.0, 0.0]


def test_whiten_keeps_small_spreads_on_large_means() -> None:
    """Two passes: E[x²] − E[x]² in fp32 would lose a spread of 0.01 on a mean of 10,000 entirely."""
    x = 10_000 + tensor([-0.5, 0.5, -0.5, 0.5])
    assert whiten(x, torch.ones(4, dtype=torch.bool)).tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0], rel=1e-3)


@given(st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=30), st.booleans())
def test_whiten_is_numpys(entries: list[tuple[float, bool]], keep_mean: bool) -> None:
    x, mask = tensor([v for v, _ in entries], dtype=torch.float64), tensor([m for _, m in entries])
    whitened = whiten(x, mask, keep_mean=keep_mean).numpy()
    counted = x.numpy()[mask.numpy()]
    assert (whitened[~mask.numpy()] == 0).all()
    if len(counted):
        wanted = (counted - counted.mean()) / np.sqrt(counted.var() + 1e-8) + (counted.mean() if keep_mean else 0)
        np.testing.assert_allclose(whitened[mask.numpy()], wanted, rtol=1e-6, atol=1e-6)


def test_pad_right() -> None:
    assert pad_right([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert pad_right([[]], 9).tolist() == [[9]]


def test_correlation_by_hand() -> None:
    """x = (−1, 0, 1), y = (1, 0, 1) − mean: uncorrelated; y = −2x + 7: −1; without spread 0."""
    x = tensor([-1.0, 0.0, 1.0])
    assert correlation(x, tensor([1.0, 0.0, 1.0])) == pytest.approx(0.0)
    assert correlation(x, -2 * x + 7) == pytest.approx(-1.0)
    assert correlation(x, tensor([3.0, 3.0, 3.0])) == 0.0
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    assert correlation(tensor(a), tensor(b)) == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_logprob_and_entropy_by_hand() -> None:
    """Hidden 1 on weights (0, log 3): p = (¼, ¾). log p and H = ¼·log 4 + ¾·log(4/3)."""
    logprobs, entropy = chunked_logprobs(
        tensor([[1.0], [1.0]]), tensor([0, 1]), tensor([[0.0], [math.log(3)]]), with_entropy=True
    )
    assert logprobs.tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)])
    assert entropy.tolist() == pytest.approx([0.25 * math.log(4) + 0.75 * math.log(4 / 3)] * 2)


def test_temperature_by_hand() -> None:
    """Temperature 2 halves log 9 to log 3, so p = (¼, ¾) again."""
    logprobs, _ = chunked_logprobs(tensor([[1.0]]), tensor([1]), tensor([[0.0], [math.log(9)]]), temperature=2.0)
    assert logprobs.item() == pytest.approx(math.log(3 / 4))


def test_forbidden_ids_take_no_mass() -> None:
    """Three equal tokens, the third forbidden in the first row alone: ½ there, ⅓ in the other."""
    logprobs, entropy = chunked_logprobs(
        torch.zeros(2, 1),
        tensor([0, 0]),
        torch.ones(3, 1),
        forbidden_N=tensor([True, False]),
        forbidden_ids=[2],
        with_entropy=True,
    )
    assert logprobs.exp().tolist() == pytest.approx([1 / 2, 1 / 3])
    assert entropy.exp().tolist() == pytest.approx([2.0, 3.0])


def test_scale_and_soft_cap() -> None:
    """Logits 4 · ½ = 2, capped to 1 · tanh 2."""
    logits = Logits(scale=0.5, cap=1.0).of(tensor([[4.0]]), tensor([[1.0]]), None)
    assert logits.item() == pytest.approx(math.tanh(2.0))


def _whole(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, cap: float, forbidden: Tensor) -> Any:
    logits = 1.3 * (hidden @ weight.T + bias)
    if cap:
        logits = cap * torch.tanh(logits / cap)
    hit = torch.zeros(logits.shape, dtype=torch.bool)
    hit[:, [0, 10]] = forbidden[:, None]
    logits = (logits / 0.7).masked_fill(hit, float("-inf"))
    table = logits.log_softmax(-1)
    entropy = -(table.exp() * table.masked_fill(hit, 0.0)).sum(-1)
    return table.gather(1, targets[:, None])[:, 0], entropy


@pytest.mark.parametrize("count", [0, 1, 4, 9])
@pytest.mark.parametrize(("rows", "entries"), [(1, 1), (4, 12), (512, 1 << 19)])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_blocks_are_the_whole_with_their_gradients(
    count: int, rows: int, entries: int, cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and all three gradients, for any cut into rows and columns (one logit at a time, too), for nothing
    counted, with a scale, a temperature, a soft cap and ids that some rows forbid."""
    monkeypatch.setattr(logprob_function, "ROWS", rows)
    monkeypatch.setattr(logprob_function, "ENTRIES", entries)
    generator = torch.Generator().manual_seed(2)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((count, 5), (11, 5), (11,))]
    targets = torch.randint(1, 10, (count,), generator=generator)
    forbidden = torch.arange(count) % 3 == 0
    results = []
    for function in ("blocks", "whole"):
        hidden, weight, bias = (leaf.clone().float().requires_grad_() for leaf in leaves)
        if function == "blocks":
            options: dict[str, Any] = {"temperature": 0.7, "scale": 1.3, "cap": cap, "with_entropy": True}
            logprobs, entropy = chunked_logprobs(
                hidden, targets, weight, bias, forbidden_N=forbidden, forbidden_ids=[0, 10], **options
            )
        else:
            logprobs, entropy = _whole(hidden, targets, weight, bias, cap, forbidden)
        (logprobs.sum() - 0.3 * entropy.sum()).backward()
        results.append((logprobs.detach(), entropy.detach(), hidden.grad, weight.grad, bias.grad))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=3e-6)


def test_without_gradients_nothing_is_kept() -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    with torch.no_grad():
        logprobs, _ = chunked_logprobs(torch.zeros(1, 2), tensor([0]), weight)
    assert not logprobs.requires_grad
