"""Settings of DPO."""

from __future__ import annotations

from typing import ClassVar, Literal

from data.config import DataSettings
from rlhf.config import setting
from rlhf.hardware import Machine
from rlhf.stage_config import BatchSettings, LoraSettings, OptimizerSettings, RunSettings, ZeroStage


class DPOConfig(RunSettings, DataSettings, BatchSettings, OptimizerSettings, LoraSettings):
    """DPO of the stage-1 model on pairs of chosen and rejected responses: no reward model, no rollouts."""

    trained_engines: ClassVar[dict[str, str]] = {"model": "zero_stage"}
    help_groups: ClassVar = {
        "Models": ("model",),
        "Data": (),
        "Run": (),
        "Training": (
            *("loss", "beta", "label_smoothing", "length_normalised", "learning_rate", "epochs", "eval_every"),
        ),
        "Batches": (),
        "Optimiser": (),
        "LoRA": (),
        "Memory and speed": ("zero_stage",),
    }

    model: str = setting("", "model from stage 1: training starts from it, and it is the reference")
    zero_stage: ZeroStage | None = setting(
        None, "ZeRO stage; default: 2 on GPUs, 1 on CPUs", flag="actor_zero_stage", resumable=True
    )
    loss: Literal["sigmoid", "ipo"] = setting(
        "sigmoid", "loss of a pair; sigmoid: DPO; ipo: the squared distance of the difference to 1/(2 beta)"
    )
    beta: float = setting(0.1, "how closely the model is kept to the reference; larger is closer", gt=0)
    label_smoothing: float = setting(0.0, "share of the pairs that is taken to be labelled wrongly", ge=0, lt=0.5)
    length_normalised: bool = setting(
        False, "log-probabilities averaged over the tokens of a response, not summed; always so with ipo"
    )
    learning_rate: float = setting(
        5e-7, "learning rate of all weights; with LoRA, lora_learning_rate is used instead", gt=0
    )
    lora_learning_rate: float = setting(5e-6, "learning rate of the adapters, used when lora_rank > 0", gt=0)
    epochs: int = setting(1, "passes over the pairs", ge=1)
    eval_every: int | None = setting(
        None, "number of steps between two measurements on held-out pairs; always at start and end", ge=1
    )

    @property
    def shares(self) -> tuple[float, float, float]:
        """No stage 3 follows, so the pairs of its prompts are learned too; stage 1 keeps the prompts that it has."""
        first, second, third = super().shares
        return first, second + third, 0.0

    @property
    def is_averaged(self) -> bool:
        """Whether a log-ratio is a mean over the tokens of a response; else it is a sum."""
        return self.length_normalised or self.loss == "ipo"

    def method(self) -> str:
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        return (
            f"{'IPO' if self.loss == 'ipo' else 'DPO'}, beta {self.beta:g}{smoothing}; log-probabilities "
            f"{'averaged' if self.is_averaged else 'summed'} over tokens; the reference is the model before training"
        )

    def problems(self, machine: Machine) -> list[str]:
        found = self.lora_problems("step2_dpo", has_reference=True)
        if self.loss == "ipo":
            found += [
                f"step2_dpo.{name} is set but loss is ipo: it has no effect; drop one of them"
                for name in ("label_smoothing", "length_normalised")
                if self.changed(name)
            ]
        return found
