"""An optimiser step through DeepSpeed is the step that plain torch would do on the whole batch, however it is split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.models.causal_model import CausalModel
from rlhf.models.lora import attach
from rlhf.stage_config import LoraSettings
from rlhf.training import distributed, zero_internals
from rlhf.training.engine import enable_activation_checkpointing, learning_rate_at, train_config
from tests.helpers import engines
from tests.helpers.tiny import tiny_lm

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
ZERO_STAGES = [0, 1, 2, 3]
# fp32 sums of another order; the weights move by 0.02 in these steps
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def expected() -> tuple[dict[str, torch.Tensor], list[float]]:
    """Three steps of plain torch AdamW over all 16 rows at once."""
    return engines.plain_training(tiny_lm())


# --- pure functions ---------------------------------------------------------------------------------------------------


def test_rate_rises_linearly_then_falls_along_the_cosine() -> None:
    """10 steps, 2 of them warm-up: 1/3 and 2/3 of the peak, then ½(1 + cos(π·k/8))."""
    rates = [learning_rate_at(s, peak=3.0, total=10, warmup_ratio=0.2, schedule="cosine") for s in range(10)]
    assert rates[:3] == [1.0, 2.0, 3.0]
    assert rates[6] == pytest.approx(1.5)  # k = 4 of 8
    assert rates[9] == pytest.approx(3.0 * 0.5 * (1 - math.cos(math.pi / 8)))  # k = 7
    assert min(rates) > 0


def test_rate_falls_on_a_line_or_stays() -> None:
    line = [learning_rate_at(s, peak=4.0, total=4, warmup_ratio=0.0, schedule="linear") for s in range(6)]
    assert line == [4.0, 3.0, 2.0, 1.0, 0.0, 0.0]  # a step beyond the planned ones has rate 0, not a negative one
    flat = [learning_rate_at(s, peak=4.0, total=4, warmup_ratio=0.25, schedule="constant") for s in range(6)]
    assert flat == [2.0, 4.0, 4.0, 4.0, 4.0, 4.0]


def test_a_single_step_has_a_rate() -> None:
    assert learning_rate_at(0, peak=1.0, total=1, warmup_ratio=0.03, schedule="cosine") == 0.5
    assert learning_rate_at(0, peak=1.0, total=1, warmup_ratio=0.0, schedule="cosine") == 1.0


def test_config_leaves_nothing_to_deepspeeds_defaults() -> None:
    """DeepSpeed 0.19 clips at 1.0 and averages over accumulation by default; both must be said."""
    config = train_config(zero_stage=2, dtype=torch.bfloat16, micro_batch_size=4, gradient_clipping=0.0)
    assert config["gradient_clipping"] == 0.0
    assert config["managed_gradient_accumulation"] is False
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": True}
    # at ZeRO-0 in fp32 we clip ourselves; clipping twice would be harmless only by luck
    assert (
        train_config(zero_stage=0, dtype=torch.float32, micro_batch_size=4, gradient_clipping=1.0)["gradient_clipping"]
        == 0
    )


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_adafactor_is_refused_where_zero_flattens(zero_stage: int) -> None:
    wanted = rf"test at ZeRO-{zero_stage} with fp32: adafactor works at ZeRO-0 in fp32 only .* adamw"
    with pytest.raises(ConfigError, match=wanted):
        engines.engine(zero_stage, optimizer="adafactor")


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_adafactor_in_bf16_is_refused_with_a_way_out(zero_stage: int) -> None:
    """ZeRO-0 was refused for bf16 with "use 1", and ZeRO-1 for adafactor with "use 0"."""
    with pytest.raises(ConfigError) as caught:
        engines.engine(zero_stage, dtype=torch.bfloat16, optimizer="adafactor")
    assert len(caught.value.problems) == 1
    assert "use ZeRO stage 0 and dtype fp32, or optimizer adamw" in str(caught.value)


def test_half_precision_without_masters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "on_gpu", lambda: False)
    monkeypatch.setattr(distributed, "gpu_has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="test at ZeRO-0 with bf16 drifts from fp32"):
        engines.engine(0, dtype=torch.bfloat16)
    with pytest.raises(ConfigError) as caught:
        engines.engine(0, dtype=torch.float16, offload_optimizer=True)
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        "test: dtype=fp16 needs a GPU: on a CPU fp16 is slow and its kernels are incomplete",
        "test at ZeRO-0 with fp16 drifts from fp32 (no fp32 weights are kept)",
        "test at ZeRO-0: offload_optimizer needs ZeRO 1, 2 or 3",
    ]


# --- one rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 16])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_split_is_plain_full_batch_training(zero_stage: int, micro_batch_size: int, expected: Any) -> None:
    """Mean over the counted tokens of the step, not a mean of micro-batch means; clipping, decay and rate included."""
    train = engines.engine(zero_stage)
    norms = engines.steps(train, micro_batch_size)
    assert norms == pytest.approx(expected[1], rel=1e-5)
    assert engines.furthest(engines.weights(train), expected[0]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_adapters_train_as_in_plain_torch(zero_stage: int) -> None:
    def adapted() -> Any:
        torch.manual_seed(1)
        return attach(tiny_lm(), LoraSettings(lora_rank=4, lora_alpha=8))

    expected, norms = engines.plain_training(adapted())
    train = engines.engine(zero_stage, model=adapted())
    assert engines.steps(train, 4) == pytest.approx(norms, rel=1e-5)
    assert engines.furthest(engines.weights(train), expected) < TOLERANCE
    moved = [
        name
        for name, value in engines.weights(train).items()
        if not torch.equal(value, dict(adapted().named_parameters())[name])
    ]
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_two_losses_share_one_step(zero_stage: int) -> None:
    """The pretraining mix: a second family of backwards, with a mean and a coefficient of its own, before the one step.

    DeepSpeed's managed accumulation lost the first of the two at ZeRO 1 and 2.
    """
    first, second, coef = range(6), range(6, 16), 3.0

    def both(lm: Any, _: Any) -> torch.Tensor:
        counts = [float(engines.problem()[1][list(rows)].sum()) for rows in (first, second)]
        return engines.plain_loss(lm, first, count=counts[0]) + coef * engines.plain_loss(lm, second, count=counts[1])

    expected, norms = engines.plain_training(tiny_lm(), loss=both)
    train = engines.engine(zero_stage)
    for norm in norms:
        engines.backward(train, first, 2)
        engines.backward(train, second, 4, scale=coef)
        assert train.step().grad_norm == pytest.approx(norm, rel=1e-5)
    assert engines.furthest(engines.weights(train), expected) < TOLERANCE


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_gradient_that_is_not_a_number_changes_nothing(zero_stage: int, expected: Any) -> None:
    """In fp32 at ZeRO-0 DeepSpeed itself would write NaN into every weight."""
    train = engines.engine(zero_stage)
    before = engines.weights(train)
    engines.backward(train, range(4), 2)
    engines.backward(train, range(4), 2, scale=math.nan)
    done = train.step()
    assert not done.applied
    assert not math.isfinite(done.grad_norm)
    assert (train.steps_done, train.steps_skipped) == (0, 1)
    assert engines.furthest(engines.weights(train), before) == 0.0
    # and nothing of it is left for the steps that follow: neither in gradients, nor in the optimiser, nor in the rate
    assert engines.steps(train, 4) == pytest.approx(expected[1], rel=1e-5)
    assert engines.furthest(engines.weights(train), expected[0]) < TOLERANCE


def test_a_loss_scale_that_was_too_high_is_no_bad_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 the first steps find the loss scale. Each was reported as a bad batch, and ten of them ended the run."""
    train = engines.engine(0)
    scales = iter([4096.0, 2048.0, 1.0, 1.0])  # before and after each of two steps: it falls, it cannot fall
    monkeypatch.setattr(zero_internals, "current_loss_scale", lambda engine: next(scales))
    for expected in (True, False):
        engines.backward(train, range(4), 2, scale=math.inf)
        done = train.step()
        assert (done.applied, done.rescaled, done.skipped) == (False, expected, not expected)
    assert (train.steps_done, train.steps_skipped) == (0, 1)


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_discarded_gradients_are_forgotten(zero_stage: int, expected: Any) -> None:
    """Early stop by KL: backwards were done, the step is not. `zero_grad` alone leaves DeepSpeed's own sums at ZeRO 1
    and 2."""
    train = engines.engine(zero_stage)
    for _ in range(2):
        engines.backward(train, range(10), 2, scale=100.0)
        train.discard()
    assert engines.steps(train, 4) == pytest.approx(expected[1], rel=1e-5)
    engines.backward(train, range(3), 1, scale=-7.0)
    train.discard()
    assert engines.furthest(engines.weights(train), expected[0]) < TOLERANCE


def test_without_clipping_the_gradient_is_whole() -> None:
    expected, norms = engines.plain_training(tiny_lm(), clip=0.0)
    for zero_stage in (0, 1):
        train = engines.engine(zero_stage, gradient_clipping=0.0)
        assert engines.steps(train, 16) == pytest.approx(norms, rel=1e-5)
        assert engines.furthest(engines.weights(train), expected) < TOLERANCE


def test_recomputed_activations_change_nothing(expected: Any) -> None:
    for zero_stage in (1, 3):
        lm = tiny_lm()
        enable_activation_checkpointing(lm)
        train = engines.engine(zero_stage, model=lm)
        assert engines.steps(train, 4) == pytest.approx(expected[1], rel=1e-5)
        assert engines.furthest(engines.weights(train), expected[0]) < TOLERANCE


def test_adapters_train_under_recomputed_activations() -> None:
    """With a frozen embedding nothing that enters a checkpointed block needs a gradient, unless it is made to."""
    lm = tiny_lm()
    enable_activation_checkpointing(lm)
    train = engines.engine(1, model=attach(lm, LoraSettings(lora_rank=4)))
    before = engines.weights(train, trained_only=True)
    engines.steps(train, 4)
    after = engines.weights(train, trained_only=True)
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_keeps_fp32_masters(zero_stage: int, expected: Any) -> None:
    """The masters move by less than bf16 could show, and stay near those of fp32 training."""
    train = engines.engine(zero_stage, model=tiny_lm().bfloat16(), dtype=torch.bfloat16, peak=1e-5)
    before = engines.weights(train)
    engines.steps(train, 4)
    moved = engines.furthest(engines.weights(train), before)
    assert 1e-6 < moved < 1e-4
    assert {p.dtype for p in train.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_bf16_gradients_are_summed_in_fp32(zero_stage: int) -> None:
    """Sixteen micro-batches of one row: the sum is that of their bf16 gradients in fp32; in bf16 it is off by 5e-3."""
    from deepspeed.utils import safe_get_full_grad

    ids, mask = engines.problem()
    count = float(mask.sum())
    plain = CausalModel(tiny_lm().bfloat16()).train().to(distributed.device())
    ids, mask = ids.to(distributed.device()), mask.to(distributed.device())
    wanted = [torch.zeros_like(p, dtype=torch.float32) for p in plain.parameters()]
    for row in range(engines.ROWS):
        plain.zero_grad()
        (-plain(ids[[row]], mask[[row]]).logprobs_N.sum() / count).backward()
        for total, parameter in zip(wanted, plain.parameters(), strict=True):
            total += 0.0 if parameter.grad is None else parameter.grad.float()
    train = engines.engine(zero_stage, model=tiny_lm().bfloat16(), dtype=torch.bfloat16)
    engines.backward(train, range(engines.ROWS), 1)
    found = [safe_get_full_grad(p) for p in train.module.parameters()]
    scale = max(float(w.abs().max()) for w in wanted)
    for total, gradient in zip(wanted, found, strict=True):
        assert gradient is not None
        assert float((total - gradient.float()).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_steps_that_did_not_count_leave_nothing(zero_stage: int) -> None:
    """The fp32 sums of discarded backwards, and of a gradient that is not a number, are forgotten as the others are."""

    def norms_after(disturbed: bool) -> list[float]:
        train = engines.engine(zero_stage, model=tiny_lm().bfloat16(), dtype=torch.bfloat16)
        if disturbed:
            engines.backward(train, range(10), 2, scale=100.0)
            train.discard()
            engines.backward(train, range(4), 2)
            engines.backward(train, range(4), 2, scale=math.nan)
            assert not train.step().applied
        return engines.steps(train, 4)

    assert norms_after(True) == norms_after(False)


def test_adafactor_is_torchs_own() -> None:
    expected, norms = engines.plain_training(tiny_lm(), optimizer=lambda groups: torch.optim.Adafactor(groups, lr=1.0))
    train = engines.engine(0, optimizer="adafactor")
    assert engines.steps(train, 2) == pytest.approx(norms, rel=1e-5)
    assert engines.furthest(engines.weights(train), expected) < TOLERANCE


# --- two ranks --------------------------------------------------------------------------------------------------------


def _splits(
    expected: dict[str, torch.Tensor], five: dict[str, torch.Tensor], adapters: dict[str, torch.Tensor]
) -> dict:
    """On each rank: how far from plain training every ZeRO stage and split ends, and their norms."""
    far: dict[str, float] = {}
    norms: dict[str, list[float]] = {}
    for zero_stage in ZERO_STAGES:
        for micro_batch_size in (1, 8):
            train = engines.engine(zero_stage)
            name = f"zero {zero_stage}, micro-batch {micro_batch_size}"
            norms[name] = engines.steps(train, micro_batch_size)
            far[name] = engines.furthest(engines.weights(train), expected)
        # 5 rows in micro-batches of 2: the second rank's last one is empty
        train = engines.engine(zero_stage)
        engines.backward(train, range(10), 2, scale=100.0)
        train.discard()
        engines.backward(train, range(4), 2, scale=math.nan if distributed.rank() == 1 else 1.0)
        assert not train.step().applied, "one rank's NaN is everyone's"
        engines.steps(train, 2, rows=range(5))
        far[f"zero {zero_stage}, 5 rows after a discarded and a skipped step"] = engines.furthest(
            engines.weights(train), five
        )
        torch.manual_seed(1)
        train = engines.engine(zero_stage, model=attach(tiny_lm(), LoraSettings(lora_rank=4, lora_alpha=8)))
        engines.steps(train, 4)
        far[f"zero {zero_stage}, adapters"] = engines.furthest(engines.weights(train), adapters)
    return {"far": far, "norms": norms}


def test_two_ranks_are_one(run_ranks: Callable[..., list[Any]], expected: Any) -> None:
    """16 × 1 = 1 × 16 also over ranks, at every ZeRO stage, with unequal shares, and after steps that did not count."""

    def plain_five(lm: Any, rows: Any) -> torch.Tensor:
        return engines.plain_loss(lm, rows, count=float(engines.problem()[1][:5].sum()))

    five, _ = engines.plain_training(tiny_lm(), rows=range(5), loss=plain_five)
    torch.manual_seed(1)
    adapters, _ = engines.plain_training(attach(tiny_lm(), LoraSettings(lora_rank=4, lora_alpha=8)))
    for result in run_ranks(_splits, expected[0], five, adapters):
        assert max(result["far"].values()) < TOLERANCE, result["far"]
        for name, norms in result["norms"].items():
            assert norms == pytest.approx(expected[1], rel=1e-5), name
