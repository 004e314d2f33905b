"""Muon with chosen products: torch's own in bf16, and what they round in fp32."""

from __future__ import annotations

import pytest
import torch

from scripts.muon import Muon, orthogonal


def trained(shape: tuple[int, int], kind: type[torch.optim.Optimizer], **options: object) -> torch.Tensor:
    """A matrix [R, C] after four steps with fixed gradients, at a rate that falls."""
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.randn(shape))
    optimizer = kind([matrix], lr=0.05, **options)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(4):
        matrix.grad = torch.randn(shape)
        optimizer.step()
        schedule.step()
    return matrix.detach()


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)], ids=["square", "wide", "tall"])
def test_in_bf16_it_is_torchs_bit_by_bit_and_in_fp32_the_same_but_for_rounding(shape: tuple[int, int]) -> None:
    theirs = trained(shape, torch.optim.Muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    start = trained(shape, torch.optim.SGD)  # the same draws
    assert not torch.allclose(theirs, start, atol=1e-2)
    assert torch.equal(trained(shape, Muon, products=torch.bfloat16), theirs)
    torch.testing.assert_close(trained(shape, Muon, products=torch.float32), theirs, atol=5e-3, rtol=0)


def test_directions_are_kept_and_their_lengths_made_one() -> None:
    """Singular values of 1 and 0.1 become 0.7 to 1.2 on the same axes, here those of the matrix itself."""
    matrix = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.2, 0.0]])
    found = orthogonal(matrix, torch.float32)
    assert found.dtype == torch.float32 and torch.equal(matrix, torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.2, 0.0]]))
    assert all(0.7 < float(found[i, i]) < 1.2 for i in (0, 1))
    off = found.clone()
    off[[0, 1], [0, 1]] = 0
    assert float(off.abs().max()) < 1e-6
