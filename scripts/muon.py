"""Muon as torch has it, with the dtype of its products for a parameter: torch's are in bf16 always."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that lifts small singular values fastest, as in torch
STEPS = 5
SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised, for weight matrices [R, C]; the rate is matched to AdamW's.

    Equal to `torch.optim.Muon(adjust_lr_fn="match_rms_adamw", weight_decay=0)` bit by bit where `products` is bf16. A
    CPU without bf16 arithmetic takes 40 times as long for such a product as for one in fp32.
    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, "Muon is scalable" (the rate).
    """

    def __init__(
        self, matrices: Iterable[torch.Tensor], *, lr: float, momentum: float = 0.95, products: torch.dtype
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})
        self.products = products

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of each matrix from its gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            momentum = group["momentum"]
            for matrix in (p for p in group["params"] if p.grad is not None):
                state = self.state[matrix]
                if not state:
                    state["average"] = torch.zeros_like(matrix)
                state["average"].lerp_(matrix.grad, 1 - momentum)
                direction = orthogonal(matrix.grad.lerp(state["average"], momentum), self.products)
                matrix.add_(direction, alpha=-0.2 * max(matrix.shape) ** 0.5 * group["lr"])


def orthogonal(matrix_RC: torch.Tensor, products: torch.dtype) -> torch.Tensor:
    """The matrix with all its singular values near 1 (0.7 to 1.2), [R, C] in `products`, by Newton–Schulz steps."""
    first, third, fifth = COEFFICIENTS
    found = matrix_RC.to(products, copy=True)
    wide = found if found.shape[0] <= found.shape[1] else found.T
    wide.div_(wide.norm().clamp(min=SMALLEST_NORM))
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if found.shape[0] <= found.shape[1] else wide.T
