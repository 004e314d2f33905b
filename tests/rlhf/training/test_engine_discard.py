"""A backward that is discarded leaves no trace in the next step.

PPO's early stop discards a mini-batch's gradients. At ZeRO-2, the default on GPUs, DeepSpeed's `zero_grad` leaves the
sums of earlier backwards in place, so the next step took both mini-batches' gradients.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf.stage_config import OptimizerSettings
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine, gathered

pytestmark = pytest.mark.gpu
SETTINGS = {"gradient_clipping": 0.0, "lr_schedule": "constant", "warmup_ratio": 0.0}


def step_after(discarded: bool, *, zero_stage: int, offload: bool) -> tuple[float, torch.Tensor]:
    """Gradient norm of the first step, and the weights after it."""
    torch.manual_seed(0)
    engine = TrainEngine(
        nn.Linear(4, 1),
        OptimizerSettings(**SETTINGS, offload_optimizer=offload),
        learning_rate=0.01,
        total_steps=1,
        zero_stage=zero_stage,
        dtype=torch.float32,
        micro_batch_size=2,
        where="test",
    )
    first = torch.ones((2, 4), device=distributed.device())
    second = torch.arange(8.0, device=distributed.device()).reshape(2, 4)
    engine.train()
    if discarded:
        engine.backward(engine(first).sum() * 100, count=2)
        engine.discard()
    engine.backward(engine(second).sum(), count=2)
    norm = engine.step().grad_norm
    weights = list(engine.module.parameters())
    with gathered(weights):
        return norm, torch.cat([w.detach().flatten().clone() for w in weights])


@pytest.mark.parametrize(("zero_stage", "offload"), [(0, False), (1, False), (2, False), (3, False), (2, True)])
def test_discarded_gradients_are_forgotten(zero_stage: int, offload: bool) -> None:
    distributed.init(0)
    norm, weights = step_after(False, zero_stage=zero_stage, offload=offload)
    norm_after_discard, weights_after_discard = step_after(True, zero_stage=zero_stage, offload=offload)
    # ½ Σ over two rows of x and 1: (0 + 4, 1 + 5, 2 + 6, 3 + 7, 2) / 2
    assert norm == pytest.approx((2**2 + 3**2 + 4**2 + 5**2 + 1) ** 0.5)
    assert norm_after_discard == pytest.approx(norm)
    torch.testing.assert_close(weights_after_discard, weights)
