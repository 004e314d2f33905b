"""The three stages, tiny and in this process: a few steps on pairs made on the spot."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import step1_sft.main
import step2_reward.main
import step3_ppo.main
from rlhf.models.export import export
from rlhf.stages.result import StageResult
from step1_sft.config import SFTConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig

BATCHES: dict[str, Any] = {
    "mini_batch_size": 4, "micro_batch_size": 2, "max_prompt_length": 40, "max_response_length": 16,
    "data_split": "1,1,1", "max_eval_samples": 8, "eval_ratio": 0.2,
}  # fmt: skip


def write_pairs(path: Path, count: int = 48) -> str:
    """A JSONL file of questions with a polite and a rude answer."""
    rows = [
        {"prompt": f"What is {i}+{i % 7}?", "chosen": f"It is {i + i % 7}.", "rejected": f"{i} no" + "!" * (i % 3)}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sft(output: Path, model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {**BATCHES, "learning_rate": 1e-3, "max_steps": 2} | changes
    return step1_sft.main.run(SFTConfig(output_dir=output, model=str(model), data_path=[pairs], **values))


def reward(output: Path, model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {**BATCHES, "learning_rate": 1e-3, "max_steps": 2} | changes
    return step2_reward.main.run(RewardConfig(output_dir=output, model=str(model), data_path=[pairs], **values))


def ppo(output: Path, actor: Path | str, reward_model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {
        **BATCHES, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "iterations": 2, "rollout_batch_size": 8,
        "ema_decay": 0.9, "force": True, "inference_dtype": "fp32",
    } | changes  # fmt: skip
    return step3_ppo.main.run(
        PPOConfig(
            output_dir=output, actor_model=str(actor), reward_model=str(reward_model), data_path=[pairs], **values
        )
    )


# --- what was in memory when a model was exported --------------------------------------------------------------------

PROBE = [[5, 9, 2, 44, 101, 7], [200, 3, 3, 17, 60, 81]]


def outputs(model: Any) -> torch.Tensor:
    """Of a transformers model: logits of PROBE at every position, or the pooled score of each row."""
    with torch.no_grad():
        model.eval()
        return model(input_ids=torch.tensor(PROBE), use_cache=False).logits.float()


@contextlib.contextmanager
def recorded_exports() -> Iterator[dict[str, torch.Tensor]]:
    """While inside, every export of a stage leaves `outputs` of the model in memory under the folder's name."""
    seen: dict[str, torch.Tensor] = {}

    def recording(model: Any, folder: Path, **options: Any) -> None:
        if "full_value" not in options:  # the moving average is not what the module holds
            seen[folder.name] = outputs(model)
        export(model, folder, **options)

    with contextlib.ExitStack() as stack:
        for main in (step1_sft.main, step2_reward.main, step3_ppo.main):
            stack.enter_context(mock.patch.object(main, "export", recording))
        yield seen
