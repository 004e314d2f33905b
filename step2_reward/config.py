"""Settings of stage 2."""

from __future__ import annotations

from typing import ClassVar

from data.config import DataSettings
from rlhf.config import setting
from rlhf.hardware import Machine
from rlhf.stage_config import BatchSettings, LoraSettings, OptimizerSettings, RunSettings, ZeroStage


class RewardConfig(RunSettings, DataSettings, BatchSettings, OptimizerSettings, LoraSettings):
    """A reward model from a pretrained language model and pairs of chosen and rejected responses."""

    trained_engines: ClassVar[dict[str, str]] = {"model": "zero_stage"}
    help_groups: ClassVar = {
        "Models": ("model",),
        "Data": (),
        "Run": (),
        "Training": ("learning_rate", "epochs", "eval_every"),
        "Batches": (),
        "Optimiser": (),
        "LoRA": (),
        "Memory and speed": ("zero_stage",),
    }

    model: str = setting("", "pretrained model: a folder, a hub name or an alias such as opt-350m")
    zero_stage: ZeroStage | None = setting(
        None, "ZeRO stage; default: 2 on GPUs, 1 on CPUs", flag="critic_zero_stage", resumable=True
    )
    learning_rate: float = setting(
        1e-5, "learning rate of all weights; with LoRA, lora_learning_rate is used instead", gt=0
    )
    epochs: int = setting(1, "passes over the pairs", ge=1)
    eval_every: int | None = setting(
        None, "number of steps between two measurements of held-out accuracy; always at start and end", ge=1
    )

    def problems(self, machine: Machine) -> list[str]:
        return self.lora_problems("step2_reward")
