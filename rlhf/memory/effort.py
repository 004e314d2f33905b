"""Tokens and floating-point operations of a stage, and the hours that they take at a share of the hardware's peak.

Every sequence is taken at its full length, so that the figures are the most that a step can take. A token of a forward
pass takes two operations a weight, and attention; a backward pass twice that, and a third time the forward pass where
activations are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.hardware import Machine
from rlhf.memory.cards import Card
from rlhf.memory.phases import copy_bytes
from rlhf.memory.shapes import Shape
from rlhf.memory.weights import attention_linears, embedding_weights, layer_linears
from rlhf.memory.workload import Role, Workload

PEAK_SHARE = 0.4  # of the peak, by default; large models on several GPUs reach 0.3 to 0.5
READ_SHARE = 0.6  # of the memory bandwidth while tokens are generated one by one


@dataclass(frozen=True)
class Effort:
    """One step of a stage (an iteration of one with rollouts): tokens, operations by part, seconds."""

    tokens: float
    operations: dict[str, float]
    seconds: float

    @property
    def total(self) -> float:
        return sum(self.operations.values())


def active_weights(s: Shape) -> float:
    """Weights that one token meets in the layers: of experts, those that it visits."""
    if s.experts is None:
        return float(sum(number * sum(li.weights for li in linears) for number, linears in layer_linears(s)))
    share = s.experts.used / s.experts.count
    return sum(
        number * sum(li.weights * (share if li.stacked and li.count > 1 else 1.0) for li in linears)
        for number, linears in layer_linears(s)
    )


def forward(role: Role, *, tokens: int, heads: int, context: int) -> float:
    """Operations of a forward pass over `tokens` tokens in sequences of `context`; `heads` get logits."""
    s = role.shape
    width = max(s.query, attention_linears(s)[-1].inputs)
    mixing = 4.0 * s.layers * width * context / 2
    logits = 0.0 if role.scalar else 2.0 * embedding_weights(s) * heads
    return (2.0 * active_weights(s) + mixing) * tokens + logits


def effort(work: Workload, machine: Machine, card: Card | None, *, share: float = PEAK_SHARE) -> Effort:
    """One step of a stage on all ranks of a machine; 0 seconds where the card's speed is not known."""
    tokens = work.steps.sequences * work.tokens
    counted = work.steps.sequences * work.counted
    once = {r.name: forward(r, tokens=tokens, heads=counted, context=work.tokens) for r in work.roles}
    again = 4.0 if work.checkpointing else 3.0
    trained = sum((again if not r.adapted else again - 1.0) * once[r.name] for r in work.roles if r.trained)
    operations = {"train": work.steps.passes * trained}
    if work.steps.looks:
        operations["score"] = work.steps.looks * sum(once.values())
    ranks = machine.world_size
    peak = card.tflops * 1e12 * share * ranks if card else 0.0
    seconds = 0.0
    if work.rollout:
        r = work.rollout
        role = work.role(r.role)
        operations["generate"] = forward(
            role, tokens=tokens, heads=work.steps.sequences * r.response, context=work.tokens
        )
        operations["score"] = sum(once.values()) + (once[r.role] if role.adapted else 0.0)
        if card and card.bandwidth:  # each token of a group reads the weights once
            groups = -(-work.steps.sequences // (ranks * r.rows))
            read = groups * r.response * copy_bytes(role, r) / (card.bandwidth * 1e9 * READ_SHARE)
            seconds += max(read - operations["generate"] / peak, 0.0) if peak else 0.0
    if peak:
        seconds += sum(operations.values()) / peak
    return Effort(tokens, operations, seconds)
