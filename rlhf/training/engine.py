"""DeepSpeed engines: their configs, how they are built, and an optimiser step that is the same however a batch is cut.

The loss of a step is a mean over all counted tokens of all micro-batches and ranks. DeepSpeed averages gradients over
the ranks. So each micro-batch's *sum* is multiplied by (number of ranks / counted tokens of the step) before its
backward, and one step follows after all of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.stage_config import NamedDtype, OptimizerSettings, dtype_problems, engine_problems
from rlhf.training import cpu, distributed, zero_internals
from rlhf.training.compiling import compile_layers
from rlhf.training.zero_internals import Fragment, full_numel, full_shape, is_sharded

# The dtypes that settings name.
DTYPES: dict[NamedDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Elements of a bucket in which gradients are reduced. DeepSpeed's own 5e8 hold 1 GB in each engine for ever.
REDUCE_BUCKET = 200_000_000


@dataclass(frozen=True)
class Step:
    """What became of an optimiser step: whether it was applied, the norm of the gradient before clipping, and the
    learning rate. `rescaled`: it was not applied, but what overflowed was fp16's loss scale, which is lower now."""

    applied: bool
    grad_norm: float
    learning_rate: float
    rescaled: bool = False

    @property
    def skipped(self) -> bool:
        """Whether something was not finite, whatever the loss scale."""
        return not self.applied and not self.rescaled


def train_config(
    *, zero_stage: int, dtype: torch.dtype, micro_batch_size: int, gradient_clipping: float, offload: bool = False
) -> dict[str, Any]:
    """The DeepSpeed config of a trained model. `micro_batch_size`: rows of one forward; `gradient_clipping`: the
    largest norm, 0 for none; `offload`: keep masters and optimiser state in CPU memory."""
    zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": REDUCE_BUCKET}
    if zero_stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": False, "reduce_scatter": True}
    if zero_stage in (1, 2):  # at ZeRO-1 gradients are reduced once a step, after all backwards
        zero |= {"overlap_comm": zero_stage == 2 and distributed.on_gpu()}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        # Any number of backwards, then one step: we say when, not DeepSpeed.
        "managed_gradient_accumulation": False,
        # At ZeRO-0 in fp32 the clipping is ours (see `_guard_plain_optimizer`).
        "gradient_clipping": 0.0 if zero_stage == 0 and dtype == torch.float32 else gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
        **_precision(dtype),
        **_gradient_sums(zero_stage, dtype),
    }


def frozen_config(*, zero_stage: int, dtype: torch.dtype, micro_batch_size: int = 1) -> dict[str, Any]:
    """The DeepSpeed config of a model that is only run, never trained."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": 10**12,
        **_precision(dtype),
    }


def zero3_config(zero_stage: int, dtype: torch.dtype) -> dict[str, Any] | None:
    """The DeepSpeed config with which a model is loaded, so that its weights are sharded as they are read; None below
    ZeRO-3, where nothing is sharded."""
    return frozen_config(zero_stage=3, dtype=dtype) if zero_stage == 3 else None


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    if dtype == torch.float32:
        return {}
    # From 2^16 the loss scale takes several skipped steps to fall to where most models train.
    scale = {"initial_scale_power": 12, "hysteresis": 1} if dtype == torch.float16 else {}
    return {_name_of(dtype): {"enabled": True, **scale}}


def _gradient_sums(zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """Sums over the micro-batches of a step are in fp32 at ZeRO 2 and 3. In bf16 each addition would round, so the sum
    of many micro-batches would differ from one large one. At ZeRO-1 sums keep the model's dtype: DeepSpeed's optimiser
    for fp32 sums there stops the process at a gradient that is not finite."""
    return {"data_types": {"grad_accum_dtype": "fp32"}} if dtype != torch.float32 and zero_stage > 1 else {}


def _name_of(dtype: torch.dtype) -> NamedDtype:
    return next(name for name, known in DTYPES.items() if known == dtype)


def learning_rate_at(step: int, *, peak: float, total: int, warmup_ratio: float, schedule: str) -> float:
    """The learning rate of optimiser step `step` (from 0) of `total`.

    It rises linearly to `peak` in the first `warmup_ratio` of the steps. Then it falls to 0 along a cosine or a line,
    or stays constant, as `schedule` says. It is above 0 from the first step on. It is a pure function of the step, so
    a resumed run needs no scheduler state.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress) if schedule == "linear" else peak


class TrainEngine:
    """A model in training: a DeepSpeed engine with a learning rate schedule of our own. Call it like the model.

    `steps_done` counts optimiser steps that were applied, `steps_skipped` those that were not finite. `total_steps` is
    the length of the schedule, `learning_rate` its peak. `dtype` is that of the weights. `where` names the engine
    in errors ("step3_ppo (actor)"). Raises ConfigError for settings that do not go together.
    """

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

        _check(settings, zero_stage=zero_stage, dtype=dtype, where=where)
        self.settings, self.peak, self.total_steps = settings, learning_rate, total_steps
        self.zero_stage, self.dtype = zero_stage, dtype
        self.steps_done, self.steps_skipped = 0, 0
        trained = sum(full_numel(p) for p in model.parameters() if p.requires_grad)
        # A step needs its fp32 gradients as a block. A large block finds no room in the memory that activations have
        # left free in the C library, and would come on top of it; so that memory goes back to the system first.
        self._returns_freed = distributed.device().type == "cpu" and 4 * trained > cpu.MAPPED_BYTES
        self._norm: float | None = None
        if settings.compile:
            compile_layers(model)
        optimizer = _optimizer(model, settings, learning_rate)
        self._guarded = zero_stage == 0 and dtype == torch.float32
        if self._guarded:
            optimizer.register_step_pre_hook(self._guard_plain_optimizer)
        config = train_config(
            zero_stage=zero_stage,
            dtype=dtype,
            micro_batch_size=micro_batch_size,
            gradient_clipping=settings.gradient_clipping,
            offload=settings.offload_optimizer,
        )
        self._engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]  # type: ignore[arg-type]

    @property
    def module(self) -> Any:
        """The model inside."""
        return self._engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        """Switch the model to training mode, or with False to evaluation mode."""
        self._engine.train(mode)

    # --- a step ------------------------------------------------------------------------------------------------------

    def backward(self, loss_sum: Tensor, *, count: float) -> None:
        """Add the gradient of one micro-batch. `loss_sum` is a sum over its counted tokens; `count` is the number of
        counted tokens of the whole step, over all its micro-batches and all ranks."""
        scale = distributed.world_size() / max(count, 1.0)
        self._engine.backward(loss_sum * scale, scale_wrt_gas=False)

    def step(self) -> Step:
        """One optimiser step over all backwards since the last. A gradient that is not finite is not applied."""
        rate = learning_rate_at(
            self.steps_done,
            peak=self.peak,
            total=self.total_steps,
            warmup_ratio=self.settings.warmup_ratio,
            schedule=self.settings.lr_schedule,
        )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._norm = None
        if self._returns_freed:
            cpu.return_freed()
        scale = zero_internals.current_loss_scale(self._engine)
        self._engine.step()
        norm = self._norm if self._guarded else self._engine.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        applied = math.isfinite(norm) and bool(self._engine.was_step_applied())
        rescaled = not applied and zero_internals.current_loss_scale(self._engine) < scale
        step = Step(applied, norm, rate, rescaled)
        self.steps_done += applied
        self.steps_skipped += step.skipped
        return step

    def skip_step(self) -> None:
        """Count a step that the caller did not take, because what it would learn from is not finite."""
        self.steps_skipped += 1

    def discard(self) -> None:
        """Forget the gradients of the backwards since the last step."""
        zero_internals.forget_gradients(self._engine)

    def keep_freed_memory(self) -> None:
        """Never hand free memory back to the system before a step: for a caller that needs as much again right away."""
        self._returns_freed = False

    # --- what it holds besides the model ------------------------------------------------------------------------------

    def masters(self) -> list[Tensor]:
        """This rank's part of the fp32 masters of all trained weights, as the optimiser holds them: flat tensors under
        ZeRO 1 to 3, the parameters themselves at ZeRO-0. Writing to them changes what the next step starts from."""
        return zero_internals.masters(self._engine)

    def fragments(self) -> list[Fragment]:
        """Where the elements of each trained parameter lie in `masters()` on this rank."""
        return zero_internals.fragments(self._engine, rank=distributed.rank())

    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimiser; its state is in the layout of `masters()`."""
        return zero_internals.inner_optimizer(self._engine)

    def counts(self) -> dict[str, Any]:
        """What of the engine's state is numbers, the same on every rank: steps, and those of the loss scaler."""
        scale = zero_internals.loss_scale(self._engine)
        return {"steps_done": self.steps_done, "steps_skipped": self.steps_skipped, "loss_scaler": scale}

    def set_counts(self, counts: Mapping[str, Any]) -> None:
        """Put back what `counts` gave."""
        self.steps_done, self.steps_skipped = int(counts["steps_done"]), int(counts["steps_skipped"])
        zero_internals.set_loss_scale(self._engine, counts["loss_scaler"])

    def _guard_plain_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Clip the gradient, and drop it when it is not finite: in fp32 at ZeRO-0 DeepSpeed would apply it."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = self.settings.gradient_clipping or math.inf
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest))
        if not math.isfinite(self._norm):
            for parameter in parameters:
                parameter.grad = None


def _check(settings: OptimizerSettings, *, zero_stage: int, dtype: torch.dtype, where: str) -> None:
    """The rules of `stage_config` for one engine, for callers that have no plan."""
    name = _name_of(dtype)
    gpus, bf16 = distributed.on_gpu(), distributed.gpu_has_bf16()
    found = dtype_problems(name, where=f"{where}: dtype", gpus=gpus, bf16=bf16) + engine_problems(
        where=f"{where} at ZeRO-{zero_stage}",
        zero_stage=zero_stage,
        dtype=name,
        optimizer=settings.optimizer,
        compile=settings.compile,
        offload=settings.offload_optimizer,
    )
    if found:
        raise ConfigError(*found)


def _optimizer(model: nn.Module, settings: OptimizerSettings, learning_rate: float) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("nothing to train: every weight is frozen")
    decayed = [p for p in trained if len(full_shape(p)) > 1]
    plain = [p for p in trained if len(full_shape(p)) <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if settings.weight_decay == 0:  # one flat group: fewer buffers
        groups = [{"params": trained, "weight_decay": 0.0}]
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=learning_rate)
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=settings.adam_eps, fused=True)


def build_frozen(model: nn.Module, *, zero_stage: int, dtype: torch.dtype) -> Any:
    """A model that is only run, never trained. At ZeRO-3 its weights are sharded over the ranks; else it is simply
    moved to the device. The result is called like the model. `dtype` must be that of the loaded weights."""
    model.requires_grad_(False).eval()
    if zero_stage != 3:
        # Do not cast here: that would also round buffers, and a bf16 model keeps its rotary frequencies in fp32.
        assert all(p.dtype == dtype for p in model.parameters()), f"load the model in {dtype}"
        return model.to(device=distributed.device())
    import deepspeed

    engine: Any = deepspeed.initialize(model=model, config=frozen_config(zero_stage=3, dtype=dtype))[0]  # type: ignore[arg-type]
    engine.eval()
    return engine


@contextlib.contextmanager
def gathered(parameters: Iterable[Any], *, modify: bool = False) -> Iterator[None]:
    """While inside, parameters that ZeRO-3 has sharded are whole on every rank. All ranks enter together.

    With `modify` rank 0's changes to them are kept, else changes are lost.
    """
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if modify else None):
        yield


def enable_activation_checkpointing(model: Any) -> None:
    """Let a transformers model recompute activations in backward: less memory, more work, the same numbers."""
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
