"""Single tokens by CUDA graphs on a GPU: `torch.cuda.CUDAGraph` itself on a real one, else one that is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from rlhf import console
from rlhf.generation import sampler as sampling_module
from rlhf.generation import step_graphs
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Generation, Sampler
from step3_ppo.hybrid.engine import HybridEngine
from tests.helpers import engines
from tests.helpers.gpu import is_real
from tests.helpers.tiny import tiny_lm
from tests.pretend import card

pytestmark = pytest.mark.slow
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17, 18, 19, 20], [250, 3], [8, 8, 8, 90, 41]] * 2
SAMPLING = Sampling(max_new_tokens=70, stop_token_ids=tuple(range(40, 48)))


def _generate(sampler: Sampler) -> tuple[Generation, int]:
    """What is drawn, and how often the host waited for it; on a real GPU nothing counts."""
    if is_real():
        return sampler.generate(PROMPTS, SAMPLING, seed=3), 0
    with card.counted() as found:
        generation = sampler.generate(PROMPTS, SAMPLING, seed=3)
    return generation, card.waits(found)


def _rollouts(family: str, dtype: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Four rollouts through the hybrid engine with training in between, each beside a plain one on the same weights.
    Copy, cache and graphs stay, but for a release after the third. And the warnings."""
    sampling_module.BATCH_SIZES = sampling_module.GRAPHED_SIZES  # so that both multiply the same matrices
    captured, captures, told, rollouts = step_graphs.StepGraphs._captured, [], [], []

    def counted(*arguments: Any) -> Any:
        captures.append(arguments)
        return captured(*arguments)

    train = engines.engine(1, model=tiny_lm(family), peak=0.01)
    hybrid = HybridEngine(train, pad_token_id=0, inference_copy="on", inference_dtype=dtype, release=False, graphs=True)
    own = hybrid._sampler.graphs
    assert own is not None and hybrid.copy is not None
    with (
        mock.patch.object(console, "warn", told.append),
        mock.patch.object(step_graphs.StepGraphs, "_captured", counted),
    ):
        for number in range(4):
            engines.backward(train, range(engines.ROWS), micro_batch_size=4)
            assert train.step().applied
            hybrid.release = number == 2
            with hybrid.generating() as sampler:
                captures.clear()
                mine, waits = _generate(sampler)
                theirs, waits_of_plain = _generate(Sampler(hybrid.copy.lm, pad_token_id=0))
                # up to the first token in which the two differ, as rounding may have it
                alike_BR = (mine.ids_BR == theirs.ids_BR).long().cumprod(dim=1).bool() & mine.mask_BR & theirs.mask_BR
                off = float((mine.logprobs_BR - theirs.logprobs_BR)[alike_BR].abs().max())
                alike = float(alike_BR.sum() / theirs.mask_BR.sum())
                made, inside = len(captures), len(own)
            more = {"made": made, "inside": inside, "left": len(own), "waits": waits - waits_of_plain}
            rollouts.append({"off": off, "alike": alike, **more})
    return rollouts, told


@pytest.mark.parametrize("family, dtype, bound", [("qwen3", "fp32", 1e-4), ("gemma", "bf16", 0.05)])
def test_graphs_say_what_the_plain_forward_says(
    family: str, dtype: str, bound: float, run_on_gpu: Callable[..., list[Any]]
) -> None:
    ((rollouts, told),) = run_on_gpu(_rollouts, family, dtype)
    assert told == []
    first, second, third, fourth = rollouts
    assert max(rollout["off"] for rollout in rollouts) <= bound
    assert min(rollout["alike"] for rollout in rollouts) >= (0.5 if is_real() and dtype == "bf16" else 1)
    assert first["made"] == first["inside"] >= 3 and second["made"] < first["made"], "graphs were not kept"
    assert third["inside"] >= second["inside"] and third["left"] == 0
    assert fourth["made"] == fourth["inside"] == fourth["left"] > 0
    if not is_real():
        # each capture is compared once; nothing else makes the host wait, but for what the first rollout measures
        assert [rollout["waits"] for rollout in rollouts[1:]] == [rollout["made"] for rollout in rollouts[1:]]
