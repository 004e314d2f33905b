"""Settings of DPO, IPO and KTO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from data.config import PreferenceSettings
from rlhf.config import setting
from rlhf.hardware import Machine
from rlhf.stage_config import BatchSettings, LoraSettings, OptimizerSettings, RunSettings, ZeroStage

TITLES = {"sigmoid": "DPO", "ipo": "IPO", "kto": "KTO"}
# Settings that only some losses read.
READ_BY = {
    "label_smoothing": ("sigmoid",),
    "length_normalised": ("sigmoid",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "learn_demonstrations": ("kto",),
}


class DPOConfig(RunSettings, PreferenceSettings, BatchSettings, OptimizerSettings, LoraSettings):
    """DPO of the stage-1 model on pairs of chosen and rejected responses, or KTO on responses that are good or bad: no
    reward model, no rollouts."""

    trained_engines: ClassVar[dict[str, str]] = {"model": "zero_stage"}
    help_groups: ClassVar = {
        "Models": ("model",),
        "Data": (),
        "Run": (),
        "Training": (
            *("loss", "beta", "label_smoothing", "length_normalised", "desirable_weight", "undesirable_weight"),
            *("learn_demonstrations", "learning_rate", "epochs", "eval_every"),
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
    loss: Literal["sigmoid", "ipo", "kto"] = setting(
        "sigmoid",
        "loss; sigmoid: DPO; ipo: the squared distance of a pair's difference to 1/(2 beta); kto: of single responses "
        "that are good or bad",
    )
    beta: float = setting(0.1, "how closely the model is kept to the reference; larger is closer", gt=0)
    label_smoothing: float = setting(0.0, "share of the pairs that is taken to be labelled wrongly", ge=0, lt=0.5)
    length_normalised: bool = setting(
        False, "log-probabilities averaged over the tokens of a response, not summed; always so with ipo"
    )
    desirable_weight: float = setting(1.0, "weight of good responses in the loss of kto", gt=0)
    undesirable_weight: float = setting(1.0, "weight of bad responses in the loss of kto", gt=0)
    learn_demonstrations: bool = setting(
        True, "with kto, responses of sources that have no bad ones; they count as good"
    )
    learning_rate: float = setting(
        5e-7, "learning rate of all weights; with LoRA, lora_learning_rate is used instead", gt=0
    )
    lora_learning_rate: float = setting(5e-6, "learning rate of the adapters, used when lora_rank > 0", gt=0)
    epochs: int = setting(1, "passes over the pairs or responses", ge=1)
    eval_every: int | None = setting(
        None, "number of steps between two measurements on held-out rows; always at start and end", ge=1
    )

    @property
    def is_averaged(self) -> bool:
        """Whether a log-ratio is a mean over the tokens of a response; else it is a sum."""
        return self.length_normalised or self.loss == "ipo"

    @property
    def title(self) -> str:
        return TITLES[self.loss]

    @property
    def unread(self) -> Mapping[str, str]:
        return {name: "loss" for name, losses in READ_BY.items() if self.loss not in losses}

    def method(self) -> str:
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        weights = ""
        if self.loss == "kto":
            weights = f", weights {self.desirable_weight:g} of good and {self.undesirable_weight:g} of bad responses"
        return (
            f"{self.title}, beta {self.beta:g}{smoothing}{weights}; log-probabilities "
            f"{'averaged' if self.is_averaged else 'summed'} over tokens; the reference is the model before training"
        )

    def problems(self, machine: Machine) -> list[str]:
        found = self.lora_problems("step2_dpo", has_reference=True)
        found += [
            f"step2_dpo.{name} is set but loss is {self.loss}: it has no effect; drop one of them"
            for name in self.unread
            if self.changed(name)
        ]
        if self.loss == "kto" and self.mini_batch_size == 1:
            found.append(
                "step2_dpo.mini_batch_size=1: kto measures each prompt with the response of another row of the step; "
                "use at least 2"
            )
        return found
