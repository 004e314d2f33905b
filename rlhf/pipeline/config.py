"""Settings of the pipeline as a whole: the flags of `train.py` and the `pipeline:` section of a recipe.

A flag stands for the setting of the same name in every stage that has one, or for the settings that name it as their
`flag`. A flag that is not given leaves the stages' own defaults. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from rlhf.config import Config, setting
from rlhf.stage_config import Dtype, ZeroStage


class PipelineConfig(Config):
    """From a pretrained language model to a chat model: SFT, reward model, PPO."""

    help_groups: ClassVar = {
        "Models": ("actor_model", "reward_model", "sft_model", "trust_remote_code"),
        "Data": (
            *("data_path", "eval_data_path", "columns", "data_split", "max_samples", "max_prompt_length"),
            *("max_response_length", "ptx_data"),
        ),
        "Run": ("output_dir", "stages", "seed", "max_steps", "trackers", "force", "price_per_gpu_hour"),
        "Training": (
            *("dtype", "micro_batch_size", "lora_rank", "actor_zero_stage", "critic_zero_stage"),
            *("reference_zero_stage", "reward_zero_stage", "ema", "kl_coef", "ptx_coef"),
        ),
        "Machine": ("num_gpus", "num_nodes", "hostfile", "node_rank", "master_addr", "master_port"),
    }

    # models
    actor_model: str | None = setting(None, "the pretrained model: a folder, a hub name or an alias such as opt-13b")
    reward_model: str | None = setting(
        None,
        "the pretrained model that stage 2 makes a reward model of; by itself the actor's. Without stage 2, a "
        "trained reward model",
    )
    sft_model: str | None = setting(None, "the actor of stage 3 when stage 1 is left out")
    trust_remote_code: bool | None = setting(None, "run code that comes with a model")

    # data
    data_path: list[str] | None = setting(
        None,
        "SOURCE[:weight], repeatable: a .jsonl, .json, .csv or .parquet file, or a hub dataset",
    )
    eval_data_path: list[str] | None = setting(None, "held-out rows; without it a part of each source is held out")
    columns: str | None = setting(None, "columns of other names: prompt=question,chosen=best,rejected=worst")
    data_split: str | None = setting(None, "shares of the prompts that stages 1, 2 and 3 get, such as 2,4,4")
    max_samples: int | None = setting(None, "rows that a stage trains on, at most", ge=1)
    max_prompt_length: int | None = setting(None, "tokens of a prompt", ge=1)
    max_response_length: int | None = setting(None, "tokens of a response", ge=1)
    ptx_data: list[str] | None = setting(None, "plain text that is mixed into PPO, repeatable")

    # the run
    stages: str = setting("", "numbers of the stages to run, such as 3 or 2,3; default: all")
    output_dir: Path = setting(Path("output"), "the run's folder")
    seed: int | None = setting(None, "of every random choice", ge=0)
    max_steps: int | None = setting(None, "optimiser steps of a stage, iterations of stage 3, at most", ge=1)
    trackers: list[Literal["tensorboard", "wandb"]] | None = setting(None, "also send metrics there, repeatable")
    force: bool | None = setting(None, "go on to PPO although the reward model fails its gate", resumable=True)
    price_per_gpu_hour: float | None = setting(None, "for the cost in the last table", gt=0)

    # training
    dtype: Dtype | None = setting(None, "of training: auto is bf16 on GPUs that have it, else fp32")
    micro_batch_size: int | None = setting(None, "rows of one forward on one rank: memory, not results", ge=1)
    lora_rank: int | None = setting(None, "rank of LoRA adapters; 0 trains all weights", ge=0)
    actor_zero_stage: ZeroStage | None = setting(None, "ZeRO of the actor: stages 1 and 3")
    critic_zero_stage: ZeroStage | None = setting(
        None,
        "ZeRO of what is trained with a scalar head: the reward model in stage 2, the critic in stage 3",
    )
    reference_zero_stage: Literal[0, 3] | None = setting(None, "3 shards the frozen reference of stage 3")
    reward_zero_stage: Literal[0, 3] | None = setting(None, "3 shards the frozen reward model of stage 3")
    ema: bool | None = setting(None, "keep a moving average of the actor")
    kl_coef: float | None = setting(None, "multiplies nats per token in the rewards", ge=0)
    ptx_coef: float | None = setting(None, "multiplies the loss on ptx-data", ge=0)

    # the machine
    num_gpus: int | None = setting(
        None, "ranks on each node; by itself all visible GPUs. Without a GPU, CPU ranks (by itself 1)", ge=0
    )
    num_nodes: int | None = setting(None, "machines; by itself those of the hostfile, else 1", ge=1)
    hostfile: Path | None = setting(None, "lines of 'host slots=8', reached by ssh from this machine")
    node_rank: int | None = setting(None, "this machine's number, when train.py is started on each of them", ge=0)
    master_addr: str | None = setting(None, "address of the machine with node rank 0")
    master_port: int = setting(29500, "a free port there", ge=1, le=65535)

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

    def problems(self, world_size: int) -> list[str]:
        found = []
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
            found.append(f"--node-rank {self.node_rank}: with --num-nodes {nodes} they are 0 to {nodes - 1}")
        return found
