"""One small training problem, by our engine and by plain torch: tests of engines compare the two.

16 rows of 12 random tokens, about half of them counted; the loss is the mean over all counted tokens of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.batches import deal
from rlhf.models.causal_model import CausalModel
from rlhf.models.export import full_master
from rlhf.models.lora import attach
from rlhf.stage_config import LoraSettings, OptimizerSettings
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine, gathered
from tests.helpers.tiny import tiny_lm

ROWS, TOKENS = 16, 12
PEAK, STEPS = 0.01, 3


def problem(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Ids and count mask, [rows, TOKENS] both; rows count different numbers of tokens, so a mean of means differs."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 300, (rows, TOKENS), generator=generator)
    share = torch.linspace(0.1, 0.9, rows)[:, None]
    mask = torch.rand((rows, TOKENS), generator=generator) < share
    mask[:, 0] = False
    mask[:, 1] = True
    return ids, mask


def settings(**changes: Any) -> OptimizerSettings:
    """Everything on: clipping that bites, weight decay, warm-up and cosine."""
    values: dict[str, Any] = {"gradient_clipping": 0.5, "weight_decay": 0.1, "warmup_ratio": 0.34, "adam_eps": 1e-4}
    return OptimizerSettings(**(values | changes))


def engine(
    zero_stage: int,
    *,
    model: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    peak: float = PEAK,
    **changes: Any,
) -> TrainEngine:
    return TrainEngine(
        CausalModel(tiny_lm() if model is None else model),
        settings(**changes),
        learning_rate=peak,
        total_steps=STEPS,
        zero_stage=zero_stage,
        dtype=dtype,
        micro_batch_size=1,
        where="test",
    )


def backward(train: TrainEngine, rows: Sequence[int], micro_batch_size: int, *, scale: float = 1.0) -> None:
    """All backwards of a step over `rows`, dealt out over the ranks."""
    ids, mask = (table.to(distributed.device()) for table in problem())
    count = float(mask[list(rows)].sum())
    train.train()
    parts = deal(rows, rank=distributed.rank(), world_size=distributed.world_size(), micro_batch_size=micro_batch_size)
    for part in parts:
        ids_BT, mask_BT = (ids[part], mask[part]) if part else (ids[:1], torch.zeros_like(mask[:1]))
        train.backward(-scale * train(ids_BT, mask_BT).logprobs_N.sum(), count=count)


def steps(train: TrainEngine, micro_batch_size: int, rows: Sequence[int] = range(ROWS)) -> list[float]:
    """STEPS optimiser steps over the same rows; the gradients' norms."""
    norms = []
    for _ in range(STEPS):
        backward(train, rows, micro_batch_size)
        done = train.step()
        assert done.applied
        norms.append(done.grad_norm)
    return norms


def weights(train: TrainEngine, *, trained_only: bool = False, of: str = "lm") -> dict[str, Tensor]:
    """Every weight, whole, in fp32, on the CPU, by its name in the model (`of`: what the wrapper calls it); all ranks
    call it."""
    out = {}
    for name, parameter in train.module.get_submodule(of).named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        with gathered([parameter]):
            master = full_master(parameter)
            out[name] = (parameter if master is None else master).detach().float().cpu().clone()
    return out


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def plain_loss(lm: Any, rows: Sequence[int], *, count: float | None = None) -> Tensor:
    """Mean cross-entropy over the counted tokens, by the model's own logits and torch's own loss."""
    ids, mask = (table[list(rows)] for table in problem())
    logits = lm(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * mask[:, 1:]).sum() / (mask.sum() if count is None else count)


def plain_training(
    lm: Any,
    *,
    rows: Sequence[int] = range(ROWS),
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    clip: float = 0.5,
    loss: Callable[[Any, Sequence[int]], Tensor] = plain_loss,
) -> tuple[dict[str, Tensor], list[float]]:
    """What `steps` should do, in plain torch with the whole batch at once: the weights and the gradients' norms."""
    trained = [p for p in lm.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-4) if optimizer is None else optimizer(groups)
    norms = []
    # STEPS 3 and warm-up 0.34: ceil(1.02) = 2 steps of warm-up at 1/3 and 2/3, then cosine at progress 0, the peak
    for rate in (PEAK / 3, PEAK * 2 / 3, PEAK):
        adamw.zero_grad()
        loss(lm, rows).backward()
        norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in trained if p.grad is not None))
        for parameter in trained:
            if parameter.grad is not None and clip:
                parameter.grad *= min(1.0, clip / norm)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        norms.append(norm)
    return {name: p.detach().float().clone() for name, p in lm.named_parameters()}, norms


def adapted(model: Any) -> Any:
    """Adapters on every linear layer, moved off zero so that their delta counts from the start."""
    model = attach(model, LoraSettings(lora_rank=4))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model
