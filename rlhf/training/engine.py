"""DeepSpeed engines: configs as pure functions, construction, and one optimiser step that is the same for any split.

The loss of a step is a mean over all counted tokens of all micro-batches and ranks. DeepSpeed averages gradients over
ranks, so each micro-batch's *sum* is scaled by world size / count before its backward, and one step ends them all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.stage_config import OptimizerSettings
from rlhf.training import cpu, distributed
from rlhf.training.compiling import compile_layers

_DTYPE_KEYS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Step:
    """What an optimiser step did: whether it was applied, the gradient's norm before clipping, the rate used."""

    applied: bool
    grad_norm: float
    learning_rate: float


def default_zero_stage() -> int:
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    return 1 if accelerator.device_name() == "cpu" else 2


def train_config(
    *, zero_stage: int, dtype: torch.dtype, micro_batch_size: int, gradient_clipping: float, offload: bool = False
) -> dict[str, Any]:
    """The DeepSpeed config of a trained model."""
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": False, "reduce_scatter": True}
    if zero_stage in (1, 2):
        zero |= {"overlap_comm": False}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        # We own the boundary: any number of backwards, then one step.
        "managed_gradient_accumulation": False,
        # At ZeRO-0 in fp32 the clipping is ours (see `_guard_plain_optimizer`).
        "gradient_clipping": 0.0 if zero_stage == 0 and dtype == torch.float32 else gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
        **_precision(dtype),
    }


def frozen_config(*, zero_stage: int, dtype: torch.dtype, micro_batch_size: int = 1) -> dict[str, Any]:
    """The DeepSpeed config of a model that is only run."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": 10**12,
        **_precision(dtype),
    }


def zero3_config(zero_stage: int, dtype: torch.dtype) -> dict[str, Any] | None:
    """The config under which a model's weights are sharded while they are read; None below ZeRO-3."""
    return frozen_config(zero_stage=3, dtype=dtype) if zero_stage == 3 else None


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    key = _DTYPE_KEYS.get(dtype)
    return {key: {"enabled": True}} if key else {}


def check_engine(*, zero_stage: int, dtype: torch.dtype, optimizer: str, where: str, compiled: bool = False) -> None:
    """Raises ConfigError for the combinations that give wrong results."""
    if optimizer == "adafactor" and zero_stage != 0:
        raise ConfigError(
            f"{where}: adafactor works at ZeRO-0 only (ZeRO flattens weights, which undoes its factored state); "
            "set the ZeRO stage to 0 or use adamw"
        )
    if compiled and zero_stage == 3:
        raise ConfigError(f"{where}: compile and ZeRO-3, which gathers weights layer by layer; use ZeRO stages 0 to 2")
    if dtype != torch.float32 and zero_stage == 0:
        raise ConfigError(f"{where}: {_DTYPE_KEYS[dtype]} at ZeRO-0 drifts from fp32; use ZeRO stage 1")


def learning_rate_at(step: int, *, peak: float, total: int, warmup_ratio: float, schedule: str) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warm-up, then cosine or linear to 0, or constant.

    A pure function of the step, so a resumed run needs no scheduler state. The first step already has a rate above 0.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress) if schedule == "linear" else peak


class TrainEngine:
    """A DeepSpeed engine with its own schedule. `engine` is the callable; `module` the model inside."""

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        *,
        learning_rate: float,
        total_steps: int,
        zero_stage: int,
        dtype: torch.dtype,
        micro_batch_size: int,
        where: str,
    ) -> None:
        import deepspeed

        check_engine(
            zero_stage=zero_stage, dtype=dtype, optimizer=settings.optimizer, where=where, compiled=settings.compile
        )
        self.settings, self.peak, self.total_steps = settings, learning_rate, total_steps
        self.zero_stage, self.dtype = zero_stage, dtype
        self.steps_done, self.steps_skipped = 0, 0
        trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        # A step's fp32 gradients are a block of their own when they are large: they find no room in what activations
        # left, and would come on top of it.
        self.returns_freed = distributed.device().type == "cpu" and 4 * trained > cpu.MAPPED_BYTES
        self._norm: float | None = None
        if settings.compile:
            compile_layers(model)
        optimizer = _optimizer(model, settings, learning_rate)
        self.guarded = zero_stage == 0 and dtype == torch.float32
        if self.guarded:
            optimizer.register_step_pre_hook(self._guard_plain_optimizer)
        config = train_config(
            zero_stage=zero_stage,
            dtype=dtype,
            micro_batch_size=micro_batch_size,
            gradient_clipping=settings.gradient_clipping,
            offload=settings.offload_optimizer,
        )
        self.engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]  # type: ignore[arg-type]

    @property
    def module(self) -> Any:
        return self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self.engine.train(mode)

    def backward(self, loss_sum: Tensor, *, count: float) -> None:
        """Backward of a sum over this micro-batch's counted tokens; `count` is theirs over the whole step: all
        micro-batches and all ranks."""
        scale = distributed.world_size() / max(count, 1.0)
        self.engine.backward(loss_sum * scale, scale_wrt_gas=False)

    def step(self) -> Step:
        """One optimiser step over all backwards since the last. A gradient that is not finite is not applied."""
        rate = learning_rate_at(
            self.steps_done,
            peak=self.peak,
            total=self.total_steps,
            warmup_ratio=self.settings.warmup_ratio,
            schedule=self.settings.lr_schedule,
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._norm = None
        if self.returns_freed:
            cpu.return_freed()
        self.engine.step()
        norm = self._norm if self.guarded else self.engine.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        applied = math.isfinite(norm) and bool(self.engine.was_step_applied())
        self.steps_done += applied
        self.steps_skipped += not applied
        return Step(applied, norm, rate)

    def discard(self) -> None:
        """Forget the gradients of the backwards since the last step."""
        optimizer = self.engine.optimizer
        optimizer.zero_grad()
        if self.zero_stage in (1, 2):  # sums of earlier backwards lie beside the gradients, and zero_grad leaves them
            for sums in ("averaged_gradients", "all_grad_tensors", "accumulated_grads_in_cpu"):
                getattr(optimizer, sums, {}).clear()
            optimizer.micro_step_id = -1

    def _guard_plain_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Clips, and drops a gradient that is not finite: in fp32 at ZeRO-0 DeepSpeed would apply it."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = self.settings.gradient_clipping or math.inf
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest))
        if not math.isfinite(self._norm):
            for parameter in parameters:
                parameter.grad = None


def _optimizer(model: nn.Module, settings: OptimizerSettings, learning_rate: float) -> torch.optim.Optimizer:
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("nothing to train: every weight is frozen")
    decayed = [p for _, p in trained if len(getattr(p, "ds_shape", p.shape)) > 1]
    plain = [p for _, p in trained if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if settings.weight_decay == 0:  # one flat group: fewer buffers
        groups = [{"params": [p for _, p in trained], "weight_decay": 0.0}]
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=learning_rate)
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=settings.adam_eps, fused=True)


def build_frozen(model: nn.Module, *, zero_stage: int, dtype: torch.dtype) -> Any:
    """A model that is only run: sharded over ranks at ZeRO-3, else simply on the device. Callable like the model."""
    model.requires_grad_(False).eval()
    if zero_stage != 3:
        # no dtype here: it would round buffers, too, and rotary frequencies are fp32 in a bf16 model
        assert all(p.dtype == dtype for p in model.parameters()), f"load the model in {dtype}"
        return model.to(device=distributed.device())
    import deepspeed

    engine: Any = deepspeed.initialize(model=model, config=frozen_config(zero_stage=3, dtype=dtype))[0]  # type: ignore[arg-type]
    engine.eval()
    return engine


@contextlib.contextmanager
def gathered(parameters: Iterable[Any], *, modify: bool = False) -> Iterator[None]:
    """Parameters whole on every rank while inside, where ZeRO-3 has sharded them; `modify` keeps rank 0's changes."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if modify else None):
        yield


def enable_activation_checkpointing(model: Any) -> None:
    """Recompute activations in backward (transformers' own, non-reentrant)."""
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
