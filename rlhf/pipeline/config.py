"""Settings of the pipeline as a whole: the flags of `train.py` and the `pipeline:` section of a recipe.

A flag sets the setting of the same name in every stage that has one, or the settings that name it as their `flag`. If a
flag is not given, the stages keep their own defaults. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from rlhf.config import Config, setting
from rlhf.hardware import Machine
from rlhf.rewards.settings import CODE_HELP, REWARD_HELP, TIMEOUT_HELP
from rlhf.stage_config import Dtype, ZeroStage


class PipelineConfig(Config):
    """From a pretrained language model to a chat model: SFT, reward model, PPO."""

    help_groups: ClassVar = {
        "Models": (
            *("actor_model", "reward_model", "sft_model", "trust_remote_code"),
            *("reward", "reward_timeout", "run_generated_code"),
        ),
        "Data": (
            *(
                "data_path",
                "eval_data_path",
                "columns",
                "data_adapter",
                "skip_bad_rows",
                "data_split",
                "max_samples",
                "max_prompt_length",
            ),
            *("max_response_length", "learn", "ptx_data"),
        ),
        "Run": ("method", "output_dir", "stages", "seed", "max_steps", "trackers", "force", "price_per_gpu_hour"),
        "Training": (
            *("dtype", "micro_batch_size", "lora_rank", "actor_zero_stage", "critic_zero_stage"),
            *("reference_zero_stage", "reward_zero_stage", "ema", "kl_coef", "ptx_coef"),
            *("advantage_estimator", "responses_per_prompt"),
        ),
        "Machine": ("num_gpus", "num_nodes", "hostfile", "node_rank", "master_addr", "master_port"),
    }

    # models
    actor_model: str | None = setting(
        None, "pretrained model for stage 1: a folder, a hub name or an alias such as opt-13b"
    )
    reward_model: str | None = setting(
        None,
        "pretrained model for stage 2; default: the actor's. Without stage 2, a trained reward model",
    )
    sft_model: str | None = setting(None, "actor for stage 3 in a run without stage 1")
    trust_remote_code: bool | None = setting(None, "permission to run code that comes with a model")

    # rewards
    reward: list[str] | None = setting(None, REWARD_HELP)
    reward_timeout: float | None = setting(None, TIMEOUT_HELP, gt=0)
    run_generated_code: bool | None = setting(None, CODE_HELP)

    # data
    data_path: list[str] | None = setting(
        None,
        "SOURCE[:weight], a file, a folder, a glob, an address such as s3://… or a hub dataset; repeatable",
    )
    eval_data_path: list[str] | None = setting(None, "held-out rows; default: a part of each source; repeatable")
    columns: str | None = setting(None, "names of the data's columns, such as prompt=question,chosen=best")
    data_adapter: str | None = setting(
        None, "function that reads each row, as file.py:function, or the hub dataset whose function is used"
    )
    skip_bad_rows: bool | None = setting(None, "rows that cannot be used: counted and left out, instead of an error")
    data_split: str | None = setting(None, "shares of the prompts for stages 1, 2 and 3, such as 2,4,4")
    max_samples: int | None = setting(None, "largest number of rows that a stage trains on", ge=1)
    max_prompt_length: int | None = setting(None, "longest prompt, in tokens", ge=1)
    max_response_length: int | None = setting(None, "longest response, in tokens, end token included", ge=1)
    learn: Literal["all", "last"] | None = setting(
        None, "assistant turns of a conversation that stage 1 learns; last: those before the last are context"
    )
    ptx_data: list[str] | None = setting(None, "SOURCE[:weight] of plain text mixed into PPO; repeatable")

    # the run
    method: str | None = setting(
        None,
        "way from preferences to the last model; ppo (default): reward model, PPO; dpo: the pairs themselves; kto: "
        "single answers, good or bad",
    )
    stages: str = setting("", "numbers of the stages to run, such as 3 or 2,3; default: all")
    output_dir: Path = setting(Path("output"), "folder of the run")
    seed: int | None = setting(None, "seed of every random choice", ge=0)
    max_steps: int | None = setting(None, "largest number of optimiser steps of a stage (iterations of stage 3)", ge=1)
    trackers: list[Literal["tensorboard", "wandb"]] | None = setting(
        None, "second destination of the metrics; repeatable"
    )
    force: bool | None = setting(
        None, "run although the memory is too small by the plan, or the reward model fails the gate", resumable=True
    )
    price_per_gpu_hour: float | None = setting(
        None, "price of a GPU for an hour, for the costs in the plan and in the last table", gt=0
    )

    # training
    dtype: Dtype | None = setting(None, "number format of training; auto: bf16 on GPUs that compute in it, else fp32")
    micro_batch_size: int | None = setting(
        None, "rows of one forward pass on one rank; changes memory, not results", ge=1
    )
    lora_rank: int | None = setting(None, "rank of the LoRA adapters; 0: all weights are trained", ge=0)
    actor_zero_stage: ZeroStage | None = setting(None, "ZeRO stage of the actor, in stages 1 and 3")
    critic_zero_stage: ZeroStage | None = setting(
        None,
        "ZeRO stage of the reward model in stage 2 and of the critic in stage 3",
    )
    reference_zero_stage: Literal[0, 3] | None = setting(
        None, "ZeRO stage of the frozen reference in stage 3; 3: sharded over the ranks"
    )
    reward_zero_stage: Literal[0, 3] | None = setting(
        None, "ZeRO stage of the frozen reward model in stage 3; 3: sharded over the ranks"
    )
    ema: bool | None = setting(None, "moving average of the actor, exported beside it")
    kl_coef: float | None = setting(None, "weight of the KL to the reference, per nat and token", ge=0)
    advantage_estimator: Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce_pp"] | None = setting(
        None,
        "way to estimate the advantages; gae: PPO with a critic, the others need none; rloo, grpo and dr_grpo compare "
        "the responses to one prompt",
    )
    responses_per_prompt: int | None = setting(None, "responses sampled for each prompt", ge=1)
    ptx_coef: float | None = setting(
        None, "weight of the loss on the text of ptx-data; default: 27.8, as in InstructGPT", ge=0
    )

    # the machine
    num_gpus: int | None = setting(
        None, "ranks on each node; default: all visible GPUs, or one CPU rank without a GPU", ge=0
    )
    num_nodes: int | None = setting(None, "number of machines; default: those of the hostfile, else 1", ge=1)
    hostfile: Path | None = setting(
        None, "file with lines such as 'host slots=8', machines reached by ssh from this one"
    )
    node_rank: int | None = setting(None, "number of this machine, for train.py started on each of them", ge=0)
    master_addr: str | None = setting(None, "address of the machine with node rank 0")
    master_port: int = setting(29500, "free port on the machine with node rank 0", ge=1, le=65535)

    @field_validator("stages", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> str:
        value = ",".join(map(str, value)) if isinstance(value, list) else str(value)  # YAML's 3 and [2, 3]
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(part.isdigit() for part in parts) or len(set(parts)) != len(parts):
            raise ValueError("give numbers of stages with commas between them, such as 1,2,3")
        return ",".join(sorted(parts, key=int))

    @property
    def selected(self) -> list[int]:
        """The numbers of the stages to run, in order; empty for all of them."""
        return [int(part) for part in filter(None, self.stages.split(","))]

    def problems(self, machine: Machine) -> list[str]:
        found: list[str] = []
        if machine.described:  # how its nodes are reached is not asked
            return found
        nodes = self.num_nodes or (2 if self.hostfile else 1)
        for flag, value in (("--node-rank", self.node_rank), ("--master-addr", self.master_addr)):
            if value is not None and nodes == 1:
                found.append(f"{flag} has no effect on one node; give --num-nodes or drop it")
        if nodes > 1 and self.node_rank is not None and not self.master_addr:
            found.append("--node-rank needs --master-addr, the address of the machine with node rank 0")
        if nodes > 1 and self.node_rank is None and not self.hostfile:
            found.append(
                f"--num-nodes {nodes} needs --hostfile (machines reached by ssh), or train.py started on each machine "
                "with its --node-rank and --master-addr"
            )
        if self.node_rank is not None and self.num_nodes and self.node_rank >= self.num_nodes > 1:
            found.append(f"--node-rank {self.node_rank} must be 0 to {nodes - 1} with --num-nodes {nodes}")
        return found
