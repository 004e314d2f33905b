"""Tokens are drawn as often as their probabilities say, from random numbers that depend on their place alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.generation.drawing import Sampling, draw, uniforms


def test_random_numbers_depend_on_seed_iteration_row_and_position_alone() -> None:
    table = uniforms(1, 2, range(50), 40)
    assert torch.equal(uniforms(1, 2, [7, 49], 13), table[[7, 49], :13])
    for other in (uniforms(2, 2, range(50), 40), uniforms(1, 3, range(50), 40)):
        assert not torch.isclose(table, other).any()
    assert float(table.min()) >= 0 and float(table.max()) < 1
    assert abs(float(table.mean()) - 0.5) < 0.02


def chi_square(drawn_N: Tensor, expected_V: Tensor) -> float:
    """(χ² − degrees of freedom) / √(2 · degrees of freedom): about a standard normal when the frequencies are right."""
    counts = torch.bincount(drawn_N, minlength=len(expected_V)).double()
    assert not counts[expected_V == 0].any(), "a token of probability 0 was drawn"
    kept = expected_V > 0
    expected = expected_V[kept].double() * len(drawn_N)
    degrees = int(kept.sum()) - 1
    return float((((counts[kept] - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1),
        Sampling(1, temperature=0.5),
        Sampling(1, top_k=5),
        Sampling(1, top_p=0.7),
        Sampling(1, top_k=9, top_p=0.8, temperature=1.5),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "all"],
)
def test_sampled_frequencies_match_the_softmax(sampling: Sampling) -> None:
    """χ² against probabilities worked out the slow way: sort, cut, renormalise."""
    logits_V = torch.randn(30, generator=torch.Generator().manual_seed(4)) * 1.5
    probabilities = (logits_V / sampling.temperature).softmax(dim=-1)
    ordered, order = probabilities.sort(descending=True)
    keep = torch.ones(30, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
    ordered = ordered * keep
    ordered = ordered / ordered.sum()
    if sampling.top_p < 1:
        keep &= ordered.cumsum(0) - ordered < sampling.top_p
    expected_V = torch.zeros(30).scatter(0, order, torch.where(keep, ordered, 0.0))
    expected_V = expected_V / expected_V.sum()
    numbers = uniforms(11, 0, range(200), 100).flatten()
    tokens, logprobs = draw(logits_V.expand(len(numbers), -1), numbers, sampling)
    assert chi_square(tokens, expected_V) < 4
    whole = (logits_V / sampling.temperature).log_softmax(dim=-1)
    torch.testing.assert_close(logprobs, whole[tokens], msg="log-probabilities are those before top-k and top-p cut")


def test_extreme_numbers_never_draw_what_has_no_mass() -> None:
    """0 and the largest double below 1 fall on the first and the last token that can be drawn."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(2, -1)
    tokens, _ = draw(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), Sampling(1))
    assert tokens.tolist() == [1, 3]
