"""Settings of stage 1."""

from __future__ import annotations

from typing import ClassVar

from data.config import DataSettings
from rlhf.config import setting
from rlhf.stage_config import BatchSettings, LoraSettings, OptimizerSettings, RunSettings, ZeroStage


class SFTConfig(RunSettings, DataSettings, BatchSettings, OptimizerSettings, LoraSettings):
    """Supervised fine-tuning of a causal language model on prompts and chosen responses."""

    trained_engines: ClassVar[dict[str, str]] = {"model": "zero_stage"}

    model: str = setting("", "pretrained model: a folder, a hub name or an alias such as opt-1.3b", flag="actor_model")
    zero_stage: ZeroStage | None = setting(
        None, "ZeRO stage; default: 2 on GPUs, 1 on CPUs", flag="actor_zero_stage", resumable=True
    )
    learning_rate: float = setting(1e-5, "of the weights; lora_learning_rate takes its place under LoRA", gt=0)
    epochs: int = setting(1, "passes over the demonstrations", ge=1)
    packing: bool = setting(False, "several demonstrations in a row, attention never crossing them; the same loss")
    train_on_prompt: bool = setting(False, "count the prompt's tokens in the loss, too")
    eval_every: int | None = setting(None, "held-out perplexity every this many steps; always at start and end", ge=1)

    def problems(self, world_size: int) -> list[str]:
        return self.lora_problems("step1_sft")
