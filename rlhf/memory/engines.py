"""Bytes of one model under DeepSpeed on one rank: what stays, what a backward pass and a step add, what is in main
memory. Read from DeepSpeed 0.19.8 and measured on it (docs/memory.md).

W weights, T of them trained, N ranks, b bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rlhf.memory.shapes import Shape
from rlhf.memory.weights import embedding_weights, layer_linears
from rlhf.memory.workload import Role

REDUCE_BUCKET = 200_000_000  # elements; as in rlhf/training/engine.py, which a test compares
SUB_GROUP = 1_000_000_000  # elements that ZeRO-3 steps at a time
LIVE = 1_050_000_000  # weights that ZeRO-3 gathers at most: those that live and those that are fetched ahead
NORM = 8  # bytes of an element while the norm of a gradient is computed


@dataclass(frozen=True)
class Held:
    """Bytes of a role on each rank, and in main memory for each rank (`host`). `means` are those bytes of `stays` that
    the first step makes: the optimiser's state; `average` those that are made when all models are there. `build`,
    `forward`, `backward` and `step` are needed for a moment; `ending` at the end of a backward pass, when the
    activations are gone and all gradients are there."""

    stays: float = 0.0
    means: float = 0.0
    average: float = 0.0
    gradients: float = 0.0  # from the first backward pass of a step to its end
    build: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    ending: float = 0.0
    step: float = 0.0
    host: float = 0.0


@lru_cache(maxsize=256)
def largest_weight(s: Shape) -> int:
    """Elements of the largest single weight."""
    return max([embedding_weights(s), *(li.weights for _, linears in layer_linears(s) for li in linears)])


def largest_module(role: Role, item: int) -> float:
    """Bytes of the largest module while it is gathered; adapters are added to a layer in fp32."""
    whole = item * largest_weight(role.shape)
    if not role.adapted:
        return float(whole)
    layers = max(li.weights for _, linears in layer_linears(role.shape) for li in linears)
    return max(whole, (8.0 + item) * layers)


def held(role: Role, *, item: int, ranks: int, gpu: bool, offload: bool, factored: bool = False) -> Held:
    """What a role holds; `item` is b, `offload`: masters and the optimiser's state are in main memory."""
    sharded = role.zero_stage == 3
    weights = item * role.weights / (ranks if sharded else 1)
    gathered = float(item * min(role.weights, LIVE)) if sharded and ranks > 1 else 0.0
    if not role.trained:
        return Held(stays=weights, forward=gathered)
    if role.adapted and gathered:  # measured: the frozen layers below adapters are held twice, embeddings once
        outside = embedding_weights(role.shape) * (1 if role.shape.tied else 2)
        gathered += float(item * min(role.weights - outside, LIVE))
    largest = largest_weight(role.shape) if not role.adapted else min(largest_weight(role.shape), role.trained)
    if role.zero_stage == 0:
        state = 0.0 if factored else 8.0 * role.trained
        average = 4.0 * role.trained if role.average else 0.0
        reduced = item * role.trained if ranks > 1 else 0.0
        return Held(
            stays=weights + state + average,
            means=state,
            average=average,
            gradients=item * role.trained,
            backward=min(reduced, item * REDUCE_BUCKET),
            step=float(item * role.trained),
        )
    part = role.trained / ranks
    # fp32 masters, AdamW's two means, the moving average
    average = 4.0 * part if role.average else 0.0
    states = 12.0 * part + average
    bucket = float(item * REDUCE_BUCKET)
    means = 0.0 if offload else 8.0 * part
    stays, host = weights + (0.0 if offload else states), states if offload else 0.0
    average = 0.0 if offload else average
    if sharded:
        stays += bucket + (0.0 if offload else 4.0 * part)
        host += 8.0 * part if offload else 0.0
        group = min(part, SUB_GROUP)
        return Held(
            stays=stays,
            means=means,
            average=average,
            build=item * largest,
            forward=gathered,
            backward=gathered,
            ending=gathered + (bucket + 4.0 * REDUCE_BUCKET / ranks if ranks > 1 else 0.0),
            step=max(0.0 if offload else 4.0 * group, (NORM + 4) * largest / ranks),
            host=host,
        )
    build = 4.0 * part
    if offload:
        build = item * float(role.trained - largest)  # the weights once more while they are made one block
        stays += item * largest
        host += 4.0 * part
    # the gradients of a step are added up in fp32 at ZeRO-2; at ZeRO-1 they are whole, in the model's dtype
    gradients = 4.0 * part if role.zero_stage == 2 else float(item * role.trained)
    reducing = ending = 0.0
    if role.zero_stage == 2:  # two buckets where reductions overlap with the backward pass
        reducing = (2.0 if gpu else 1.0) * bucket
        alone = 2 if ranks > 1 and largest > REDUCE_BUCKET else 1  # what is larger than a bucket is reduced by itself
        ending = reducing + item * (part + alone * largest)
    elif ranks > 1:
        reducing = min(bucket, item * role.trained)
    flat = 4.0 * part if item == 4 else 0.0
    if role.zero_stage == 1:  # gradients of other ranks are gone: its own, these as a block, and the block in fp32
        flat = 8.0 * part - gradients
    return Held(
        stays=stays,
        means=means,
        average=average,
        gradients=gradients,
        build=build,
        backward=reducing,
        ending=ending,
        step=max(NORM * min(largest, part), flat),
        host=host,
    )
