"""Settings of stage 3."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from data.config import PretrainingMixSettings
from rlhf.config import setting
from rlhf.hardware import Machine
from rlhf.rewards.names import TRAINED
from rlhf.rewards.settings import RewardSettings
from rlhf.stage_config import (
    Dtype,
    LoraSettings,
    OptimizerSettings,
    RunSettings,
    ZeroStage,
    dtype_problems,
    several,
)
from step3_ppo.hybrid.parallel_sizes import rank_problems
from step3_ppo.method_config import MethodSettings

OTHER_TOKENS = (
    "step3_ppo.critic_from=reward: actor and reward model have different tokenizers or templates, and a critic must "
    "read the actor's tokens; use --critic-from actor"
)


def reuse_problems(*zero_stages: int | None) -> list[str]:
    """Why `reuse_forward` does not go with the ZeRO stages of actor and critic."""
    if 3 not in zero_stages:
        return []
    return [
        "step3_ppo.reuse_forward: ZeRO-3 gathers weights for one forward at a time; use ZeRO stages 0 to 2 for "
        "actor and critic, or leave it out"
    ]


class PPOConfig(MethodSettings, RunSettings, RewardSettings, PretrainingMixSettings, OptimizerSettings, LoraSettings):
    """PPO, or a relative of it without a critic, of the stage-1 model against the stage-2 model."""

    trained_engines: ClassVar[dict[str, str]] = {"actor": "actor_zero_stage", "critic": "critic_zero_stage"}
    frozen_models: ClassVar[dict[str, str]] = {
        "reference": "reference_zero_stage",
        "reward model": "reward_zero_stage",
    }
    help_groups: ClassVar = {
        "Models": ("actor_model", "reward_model", "critic_from"),
        "Rewards": (),
        "Data": (),
        "Run": (),
        "Rollout": (
            *("iterations", "rollout_batch_size", "responses_per_prompt", "temperature", "top_p", "top_k"),
            *("min_response_length", "rollout_micro_batch_size"),
        ),
        "Rewards and advantages": (
            *("kl_coef", "adaptive_kl_target", "adaptive_kl_horizon", "score_clip", "missing_eos_penalty"),
            *("kl_in", "advantage_estimator", "drop_uniform_groups", "whiten_rewards", "gamma", "gae_lambda"),
        ),
        "Training": (
            *("actor_learning_rate", "critic_learning_rate", "ppo_epochs", "cliprange", "cliprange_high"),
            *("cliprange_value", "loss_mean", "ratio", "entropy_coef", "early_stop_kl", "critic_warmup_iterations"),
        ),
        "Batches": ("scoring_micro_batch_size",),
        "Optimiser": (),
        "LoRA": (),
        "Moving average": ("ema", "ema_decay"),
        "Pretraining mix": (),
        "Memory and speed": (
            *("actor_zero_stage", "critic_zero_stage", "reference_zero_stage", "reward_zero_stage", "reuse_forward"),
        ),
        "Inference copy": (
            *("inference_copy", "inference_dtype", "inference_tp_size", "inference_compile", "inference_cuda_graphs"),
            "release_inference_cache",
        ),
        "Checks": (
            *("force", "gate_accuracy", "gate_margin", "gate_length_correlation", "gate_calibration_error"),
            "kl_warning",
        ),
        "Rollout files": ("save_rollouts_every", "keep_rollouts"),
    }

    # the four roles
    actor_model: str = setting("", "model from stage 1: the actor starts from it, the reference is a frozen copy")
    reward_model: str = setting("", "reward model from stage 2")
    critic_from: Literal["auto", "reward", "actor"] = setting(
        "auto",
        "model that the critic starts from; auto: the reward model if it reads the actor's tokens, else the actor",
    )
    actor_zero_stage: ZeroStage | None = setting(
        None, "ZeRO stage of the actor; default: 2 on GPUs, 1 on CPUs", resumable=True
    )
    critic_zero_stage: ZeroStage | None = setting(
        None, "ZeRO stage of the critic; default: 2 on GPUs, 1 on CPUs", resumable=True
    )
    reference_zero_stage: Literal[0, 3] = setting(
        0, "ZeRO stage of the frozen reference; 3: sharded over the ranks", resumable=True
    )
    reward_zero_stage: Literal[0, 3] = setting(
        0, "ZeRO stage of the frozen reward model; 3: sharded over the ranks", resumable=True
    )
    actor_learning_rate: float = setting(
        1e-6, "learning rate of the actor; with LoRA, lora_learning_rate is used instead", gt=0
    )
    critic_learning_rate: float = setting(5e-6, "learning rate of the critic", gt=0)
    adam_eps: float = setting(1e-5, "number added to the denominator of AdamW's step", gt=0)
    lr_schedule: Literal["cosine", "linear", "constant"] = setting(
        "constant", "course of the learning rate after the warm-up"
    )

    # rollout
    iterations: int | None = setting(None, "rounds of rollout and learning; default: one pass over the prompts", ge=1)
    rollout_micro_batch_size: int | None = setting(
        None, "responses sampled at a time on one rank; default: all of the rank's", ge=1
    )
    mini_batch_size: int = setting(64, "rows of one optimiser step, over all ranks", ge=1)
    scoring_micro_batch_size: int | None = setting(
        None,
        "rows of one forward pass without gradients on one rank; changes memory, not results; default: "
        "micro_batch_size",
        resumable=True,
        ge=1,
    )
    min_response_length: int = setting(0, "number of tokens before the end token can be drawn", ge=0)
    temperature: float = setting(1.0, "temperature of the sampling and of the log-probabilities", gt=0)
    top_p: float = setting(1.0, "probability of the smallest set of tokens to sample from; 1: all tokens", gt=0, le=1)
    top_k: int = setting(0, "number of most likely tokens to sample from; 0: all tokens", ge=0)

    # the hybrid engine: how the actor generates
    inference_tp_size: int = setting(
        1, "ranks of one node that share an inference copy (tensor parallelism)", resumable=True, ge=1
    )
    inference_dtype: Dtype = setting(
        "auto", "number format of the inference copy; auto: bf16 where the hardware computes in it", resumable=True
    )
    inference_copy: Literal["auto", "on", "off"] = setting(
        "auto",
        "copy of the actor for generation; auto: if layout or number format differ from training; "
        "off: generation with the training weights",
        resumable=True,
    )
    inference_compile: bool = setting(
        False,
        "torch.compile of the sampling, for Llama-like models; 90 seconds to build, no gain on CPUs",
        resumable=True,
    )
    inference_cuda_graphs: bool = setting(
        False,
        "sampling of Llama-like models on a GPU by CUDA graphs: a token's kernels are started at once; goes best with "
        "release_inference_cache off, which keeps the graphs",
        resumable=True,
    )
    release_inference_cache: bool = setting(
        True, "memory of inference copy and KV cache freed after each rollout", resumable=True
    )

    # rewards and advantages
    kl_coef: float = setting(0.05, "weight of the KL to the reference, per nat and token", ge=0)
    adaptive_kl_target: float | None = setting(
        None, "KL per response, in nats, that kl_coef is adapted to; default: kl_coef is fixed", gt=0
    )
    adaptive_kl_horizon: int = setting(
        10_000, "number of responses over which kl_coef adapts; larger: more slowly", ge=1
    )
    score_clip: float = setting(5.0, "limit of the normalised scores: they are clipped to ± this value", gt=0)
    missing_eos_penalty: float = setting(1.0, "amount taken off the score of a response without end token", ge=0)
    whiten_rewards: bool = setting(False, "rewards scaled to unit variance before the advantages")
    gamma: float = setting(1.0, "discount per token", gt=0, le=1)
    gae_lambda: float = setting(0.95, "lambda of the advantage estimates; lower: less variance, more bias", ge=0, le=1)

    # optimisation
    ppo_epochs: int = setting(1, "passes over each rollout", ge=1)
    cliprange: float = setting(0.2, "range of the probability ratio around 1, beyond which it is clipped", gt=0)
    cliprange_value: float = setting(0.2, "range of a value around the old one, beyond which it is clipped", gt=0)
    entropy_coef: float = setting(0.0, "weight of the entropy bonus", ge=0)
    reuse_forward: bool = setting(
        False,
        "reuse of the scoring forward passes in the first step of an iteration: the same numbers for less work; "
        "the activations of a mini-batch of actor and critic stay in memory",
        resumable=True,
    )
    critic_warmup_iterations: int = setting(0, "number of first iterations in which only the critic learns", ge=0)
    early_stop_kl: float | None = setting(None, "approx_kl above which the steps of an iteration end early", gt=0)

    # EMA
    ema: bool = setting(True, "moving average of the actor, exported beside it")
    ema_decay: float = setting(
        0.992, "decay d of the moving average: θ_ema ← d·θ_ema + (1 − d)·θ after each step", ge=0, lt=1
    )

    save_every: int = setting(
        10, "number of iterations between two checkpoints; the last iteration always has one", resumable=True, ge=1
    )

    # what is kept and checked
    save_rollouts_every: int = setting(
        10, "number of iterations between two whose rollouts are kept", resumable=True, ge=1
    )
    keep_rollouts: int = setting(5, "number of newest iterations whose rollouts are also kept", resumable=True, ge=0)
    gate_accuracy: float = setting(0.55, "lowest held-out accuracy of a reward model that passes the gate", ge=0, le=1)
    gate_margin: float = setting(0.0, "held-out mean margin above which a reward model passes the gate")
    gate_length_correlation: float = setting(
        0.8, "largest correlation of score and length, either way, that passes the gate", ge=0, le=1
    )
    gate_calibration_error: float = setting(0.25, "largest expected calibration error that passes the gate", ge=0, le=1)
    force: bool = setting(False, "PPO even with a reward model that fails the gate", resumable=True)
    kl_warning: float = setting(50.0, "KL per response, in nats, above which a warning is shown", resumable=True, gt=0)

    @field_validator("inference_copy", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        """YAML reads a bare `on` or `off` as true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def scoring_rows(self) -> int:
        """Rows of one forward pass without gradients on one rank."""
        return self.scoring_micro_batch_size or self.micro_batch_size

    @property
    def needs_reward_model(self) -> bool:
        """Whether a trained reward model scores responses, or the critic starts from it."""
        starts_critic = self.critic_from == "reward" and self.estimator.has_critic
        return starts_critic or self.is_scored_by_model

    @property
    def is_scored_by_model(self) -> bool:
        """Whether the trained reward model is one of the rewards: it is the only one where none is named."""
        return not self.reward or any(reward.kind == TRAINED for reward in self.rewards)

    def batch_algebra(self, world_size: int) -> str:
        """`rollout_batch_size 64 = 32 prompts × 2 responses; 2 steps of mini_batch_size 32 = …`."""
        size, each = self.rollout_batch_size, self.responses_per_prompt
        steps = self.ppo_epochs * -(-size // self.mini_batch_size)
        parts = f"{several(size // each, 'prompt')} × {several(each, 'response')}"
        algebra = super().batch_algebra(world_size)
        return f"rollout_batch_size {size} = {parts}; {several(steps, 'step')} of {algebra}"

    def problems(self, machine: Machine) -> list[str]:
        found = self.lora_problems("step3_ppo", has_reference=True) + self.reward_problems()
        if self.reward_model and not self.needs_reward_model:
            found.append(
                "step3_ppo.reward_model is set but no reward is that model: it has no effect; add "
                "--reward reward_model, or leave it out"
            )
        size = self.rollout_batch_size
        for name, divisor, least in (
            ("mini_batch_size", self.mini_batch_size, 1),
            ("responses_per_prompt", self.responses_per_prompt, 2 if self.estimator.grouped else 1),
        ):
            if size % divisor:
                fits = (n for n in range(least, size + 1) if size % n == 0)
                nearest = sorted(fits, key=lambda n: abs(n - divisor))[:3]
                fitting = ", ".join(map(str, sorted(nearest)))
                found.append(f"step3_ppo.{name}={divisor} does not divide rollout_batch_size={size}; try {fitting}")
        found += self.method_problems()
        if self.min_response_length >= self.max_response_length:
            found.append(
                f"step3_ppo.min_response_length={self.min_response_length} must be below "
                f"max_response_length={self.max_response_length}"
            )
        found += rank_problems(size=self.inference_tp_size, ranks=machine.ranks)
        where = "step3_ppo.inference_dtype"
        found += dtype_problems(self.inference_dtype, where=where, gpus=machine.gpus, bf16=machine.bf16)
        if self.reuse_forward:
            found += reuse_problems(*(getattr(self, name) for name in self.engine_settings().values()))
            if self.scoring_micro_batch_size and size == self.mini_batch_size and not self.critic_warmup_iterations:
                found.append(
                    "step3_ppo.scoring_micro_batch_size is set but reuse_forward trains on all passes that score, with "
                    "micro_batch_size rows: it has no effect; drop one of them"
                )
        found += self._sampling_problems(machine)
        if self.inference_copy == "off":
            found += [
                f"step3_ppo.{name} is set but inference_copy is off: it has no effect; drop one of them"
                for name in ("inference_tp_size", "inference_dtype")
                if self.changed(name)
            ]
        found += [
            f"step3_ppo.{name} is set but ptx_data is empty: it has no effect; give --ptx-data a text file"
            for name in ("ptx_coef", "ptx_length")
            if self.changed(name) and getattr(self, name) and not self.ptx_data
        ]
        if self.changed("adaptive_kl_horizon") and self.adaptive_kl_target is None:
            found.append(
                "step3_ppo.adaptive_kl_horizon is set but kl_coef is fixed: it has no effect; set adaptive_kl_target"
            )
        if self.changed("ema_decay") and not self.ema:
            found.append("step3_ppo.ema_decay is set but ema is off: it has no effect; drop it or use --ema")
        return found

    def _sampling_problems(self, machine: Machine) -> list[str]:
        """What keeps single tokens from being compiled, or captured as graphs."""
        found = []
        if self.inference_cuda_graphs and not machine.gpus:
            found.append("step3_ppo.inference_cuda_graphs needs a GPU; leave it out")
        if self.inference_cuda_graphs and self.inference_compile:
            found.append("step3_ppo.inference_cuda_graphs does not go with inference_compile; drop one of them")
        if self.inference_cuda_graphs and self.inference_tp_size > 1:
            found.append(
                f"step3_ppo.inference_cuda_graphs does not go with inference_tp_size={self.inference_tp_size}, whose "
                "ranks wait for each other within a token; drop one of them"
            )
        if self.inference_copy == "off" and self.zero_stages(gpus=machine.gpus)["actor"] == 3:
            found += [
                f"step3_ppo.{name}: ZeRO-3 gathers weights layer by layer where inference_copy is off; drop one of them"
                for name in ("inference_compile", "inference_cuda_graphs")
                if getattr(self, name)
            ]
        return found
