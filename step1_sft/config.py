"""Settings of stage 1."""

from __future__ import annotations

from typing import ClassVar, Literal

from data.config import DataSettings
from rlhf.config import setting
from rlhf.hardware import Machine
from rlhf.stage_config import BatchSettings, LoraSettings, OptimizerSettings, RunSettings, ZeroStage


class SFTConfig(RunSettings, DataSettings, BatchSettings, OptimizerSettings, LoraSettings):
    """Supervised fine-tuning of a causal language model on prompts and chosen responses."""

    trained_engines: ClassVar[dict[str, str]] = {"model": "zero_stage"}
    help_groups: ClassVar = {
        "Models": ("model",),
        "Data": (),
        "Run": (),
        "Training": ("learning_rate", "epochs", "packing", "learn", "train_on_prompt", "eval_every"),
        "Batches": (),
        "Optimiser": (),
        "LoRA": (),
        "Memory and speed": ("zero_stage",),
    }

    model: str = setting("", "pretrained model: a folder, a hub name or an alias such as opt-1.3b", flag="actor_model")
    zero_stage: ZeroStage | None = setting(
        None, "ZeRO stage; default: 2 on GPUs, 1 on CPUs", flag="actor_zero_stage", resumable=True
    )
    learning_rate: float = setting(
        1e-5, "learning rate of all weights; with LoRA, lora_learning_rate is used instead", gt=0
    )
    epochs: int = setting(1, "passes over the demonstrations", ge=1)
    packing: bool = setting(
        False, "several demonstrations in one row, without attention between them; the loss is the same"
    )
    learn: Literal["all", "last"] = setting(
        "all", "assistant turns of a conversation that stage 1 learns; last: those before the last are context"
    )
    train_on_prompt: bool = setting(False, "loss on the tokens of the prompt as well")
    eval_every: int | None = setting(
        None, "number of steps between two measurements of held-out perplexity; always at start and end", ge=1
    )

    def problems(self, machine: Machine) -> list[str]:
        found = self.lora_problems("step1_sft")
        if self.train_on_prompt and self.learn == "last":
            found.append("step1_sft.learn=last has no effect with train_on_prompt: all tokens count; leave one out")
        return found
