"""Settings of stage 3."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from data.config import DataSettings, PretrainingMixSettings
from rlhf.config import setting
from rlhf.stage_config import BatchSettings, Dtype, LoraSettings, OptimizerSettings, RunSettings, ZeroStage, several


class PPOConfig(RunSettings, DataSettings, PretrainingMixSettings, BatchSettings, OptimizerSettings, LoraSettings):
    """PPO of the stage-1 model against the stage-2 model."""

    trained_engines: ClassVar[dict[str, str]] = {"actor": "actor_zero_stage", "critic": "critic_zero_stage"}
    frozen_models: ClassVar[dict[str, str]] = {
        "reference": "reference_zero_stage",
        "reward model": "reward_zero_stage",
    }

    # the four roles
    actor_model: str = setting("", "the stage-1 model; also the reference")
    reward_model: str = setting("", "the stage-2 model: a folder with a scalar head")
    critic_from: Literal["reward", "actor"] = setting("reward", "the model that the critic starts from")
    actor_zero_stage: ZeroStage | None = setting(
        None, "ZeRO of the actor: by itself 2 on GPUs, 1 on CPUs", resumable=True
    )
    critic_zero_stage: ZeroStage | None = setting(
        None, "ZeRO of the critic: by itself 2 on GPUs, 1 on CPUs", resumable=True
    )
    reference_zero_stage: Literal[0, 3] = setting(0, "3 shards the frozen reference over the ranks", resumable=True)
    reward_zero_stage: Literal[0, 3] = setting(0, "3 shards the frozen reward model over the ranks", resumable=True)
    actor_learning_rate: float = setting(1e-6, "of the actor; lora_learning_rate takes its place under LoRA", gt=0)
    critic_learning_rate: float = setting(5e-6, "of the critic", gt=0)
    adam_eps: float = setting(1e-5, "added to the denominator", gt=0)
    lr_schedule: Literal["cosine", "linear", "constant"] = setting("constant", "after the warm-up")

    # rollout
    iterations: int | None = setting(None, "rounds of rollout and learning; by itself one pass over the prompts", ge=1)
    rollout_batch_size: int = setting(64, "sequences generated per iteration, over all ranks", ge=1)
    rollout_micro_batch_size: int | None = setting(None, "sequences generated at a time on a rank; all at once", ge=1)
    responses_per_prompt: int = setting(1, "responses sampled of each prompt", ge=1)
    mini_batch_size: int = setting(64, "sequences of one optimiser step, over all ranks", ge=1)
    min_response_length: int = setting(0, "tokens before the end token may be drawn", ge=0)
    temperature: float = setting(1.0, "of the sampling; log-probabilities are those at this temperature", gt=0)
    top_p: float = setting(1.0, "sample from the smallest set with this mass", gt=0, le=1)
    top_k: int = setting(0, "sample from the k most likely tokens; 0 is off", ge=0)

    # the hybrid engine: how the actor generates
    inference_tp_size: int = setting(
        1, "ranks of a node over which the actor's inference copy is cut (tensor parallelism)", resumable=True, ge=1
    )
    inference_dtype: Dtype = setting(
        "auto", "of the copy: auto is bf16 where the hardware computes in it", resumable=True
    )
    inference_copy: Literal["auto", "on", "off"] = setting(
        "auto",
        "auto copies where layout or dtype differ from training's; off generates on the training weights",
        resumable=True,
    )
    inference_compile: bool = setting(
        False,
        "torch.compile the sampling of Llama-like models; a minute and a half to build, and no gain on CPUs",
        resumable=True,
    )
    release_inference_cache: bool = setting(True, "free copy and KV cache after each rollout", resumable=True)

    # rewards and advantages
    kl_coef: float = setting(0.05, "multiplies nats per token in the rewards", ge=0)
    adaptive_kl_target: float | None = setting(None, "adapt kl_coef towards this KL in nats per sequence", gt=0)
    adaptive_kl_horizon: int = setting(10_000, "sequences in which the controller moves", ge=1)
    score_clip: float = setting(5.0, "normalised scores are clipped to plus or minus this", gt=0)
    missing_eos_penalty: float = setting(1.0, "taken off the score of a response without an end token", ge=0)
    whiten_rewards: bool = setting(False, "rewards to unit variance before the advantages")
    gamma: float = setting(1.0, "discount per token", gt=0, le=1)
    gae_lambda: float = setting(0.95, "trade between bias and variance of the advantages", ge=0, le=1)

    # optimisation
    ppo_epochs: int = setting(1, "passes over a rollout", ge=1)
    cliprange: float = setting(0.2, "of the probability ratio", gt=0)
    cliprange_value: float = setting(0.2, "of the values", gt=0)
    entropy_coef: float = setting(0.0, "multiplies the entropy bonus", ge=0)
    reuse_forward: bool = setting(
        False,
        "train an iteration's first step on the forward passes that scored its rows: the same numbers for less work, "
        "but the activations of a mini-batch, of actor and critic, stay in memory",
        resumable=True,
    )
    critic_warmup_iterations: int = setting(0, "iterations in which only the critic learns", ge=0)
    early_stop_kl: float | None = setting(None, "end an iteration's steps when approx_kl exceeds this", gt=0)

    # EMA
    ema: bool = setting(True, "keep a moving average of the actor, written to actor_ema/")
    ema_decay: float = setting(0.992, "θ_ema ← d·θ_ema + (1 − d)·θ after each step", ge=0, lt=1)

    save_every: int = setting(10, "write a checkpoint every this many iterations, and at the end", resumable=True, ge=1)

    # what is kept and checked
    save_rollouts_every: int = setting(10, "keep every this many iterations' rollouts", resumable=True, ge=1)
    keep_rollouts: int = setting(5, "keep the last so many iterations' rollouts, too", resumable=True, ge=0)
    gate_accuracy: float = setting(0.55, "held-out accuracy that the reward model must reach", ge=0, le=1)
    gate_margin: float = setting(0.0, "held-out mean margin that it must exceed")
    gate_length_correlation: float = setting(0.8, "largest correlation of its score with length", ge=0, le=1)
    gate_calibration_error: float = setting(0.25, "largest expected calibration error", ge=0, le=1)
    force: bool = setting(False, "go on although the reward model fails the gate", resumable=True)
    kl_warning: float = setting(50.0, "warn of a KL above this, in nats per response", resumable=True, gt=0)

    @field_validator("inference_copy", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        """YAML reads a bare `on` or `off` as true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    def batch_algebra(self, world_size: int) -> str:
        """`rollout_batch_size 64 = 32 prompts × 2 responses; 2 steps of mini_batch_size 32 = …`."""
        size, each = self.rollout_batch_size, self.responses_per_prompt
        steps = self.ppo_epochs * -(-size // self.mini_batch_size)
        parts = f"{several(size // each, 'prompt')} × {several(each, 'response')}"
        algebra = super().batch_algebra(world_size)
        return f"rollout_batch_size {size} = {parts}; {several(steps, 'step')} of {algebra}"

    def problems(self, world_size: int) -> list[str]:
        found = self.lora_problems("step3_ppo")
        size = self.rollout_batch_size
        for name, divisor in (
            ("mini_batch_size", self.mini_batch_size),
            ("responses_per_prompt", self.responses_per_prompt),
        ):
            if size % divisor:
                nearest = sorted((n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - divisor))[:3]
                fitting = ", ".join(map(str, sorted(nearest)))
                found.append(f"step3_ppo.{name}={divisor} does not divide rollout_batch_size={size}; try {fitting}")
        if self.min_response_length >= self.max_response_length:
            found.append(
                f"step3_ppo.min_response_length={self.min_response_length} must be below "
                f"max_response_length={self.max_response_length}"
            )
        if self.reuse_forward and 3 in (self.actor_zero_stage, self.critic_zero_stage):
            found.append(
                "step3_ppo.reuse_forward: ZeRO-3 gathers weights for one forward at a time; use ZeRO stages 0 to 2 for "
                "actor and critic, or leave it out"
            )
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
