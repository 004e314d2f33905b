"""The stages, tiny and in this process: a few steps on pairs made on the spot."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import step1_sft.main
import step2_dpo.main
import step2_reward.main
import step3_ppo.main
from rlhf.metrics import read_metrics
from rlhf.models.export import export
from rlhf.stages.result import StageResult
from step1_sft.config import SFTConfig
from step2_dpo.config import DPOConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig
from tests.helpers import engines
from tests.helpers.ppo import save_reward_model
from tests.helpers.tiny import save_tiny

BATCHES: dict[str, Any] = {
    "mini_batch_size": 4, "micro_batch_size": 2, "max_prompt_length": 40, "max_response_length": 16,
    "data_split": "1,1,1", "max_eval_samples": 8, "eval_ratio": 0.2,
}  # fmt: skip
RATES = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}


def write_pairs(path: Path, count: int = 48) -> str:
    """A JSONL file of questions with a polite and a rude answer."""
    rows = [
        {"prompt": f"What is {i}+{i % 7}?", "chosen": f"It is {i + i % 7}.", "rejected": f"{i} no" + "!" * (i % 3)}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_inputs(folder: Path) -> dict[str, Path]:
    """A base model, a reward model and pairs."""
    write_pairs(folder / "pairs.jsonl")
    return {
        "base": save_tiny(folder / "base"),
        "reward": save_reward_model(folder / "reward"),
        "pairs": folder / "pairs.jsonl",
    }


def sft(output: Path, model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {**BATCHES, "learning_rate": 1e-3, "max_steps": 2} | changes
    return step1_sft.main.run(SFTConfig(output_dir=output, model=str(model), data_path=[pairs], **values))


def reward(output: Path, model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {**BATCHES, "learning_rate": 1e-3, "max_steps": 2} | changes
    return step2_reward.main.run(RewardConfig(output_dir=output, model=str(model), data_path=[pairs], **values))


def dpo(output: Path, model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {**BATCHES, "learning_rate": 1e-3, "max_steps": 2} | changes
    return step2_dpo.main.run(DPOConfig(output_dir=output, model=str(model), data_path=[pairs], **values))


def ppo(output: Path, actor: Path | str, reward_model: Path | str, pairs: str, **changes: Any) -> StageResult:
    values = {
        **BATCHES, **RATES, "iterations": 2, "rollout_batch_size": 8,
        "ema_decay": 0.9, "force": True, "inference_dtype": "fp32",
    } | changes  # fmt: skip
    return step3_ppo.main.run(
        PPOConfig(
            output_dir=output, actor_model=str(actor), reward_model=str(reward_model), data_path=[pairs], **values
        )
    )


# --- runs that are compared -------------------------------------------------------------------------------------------


def all_stages(
    output: Path, inputs: dict[str, Path], zero_stage: int, *, of_ppo: dict[str, Any] | None = None, **changes: Any
) -> None:
    """Each stage from the same "base", "reward" and "pairs", so that differences do not add up over stages."""
    pairs = str(inputs["pairs"])
    sft(output / "sft", inputs["base"], pairs, zero_stage=zero_stage, **changes)
    reward(output / "reward", inputs["base"], pairs, zero_stage=zero_stage, **changes)
    for loss in ("dpo", "kto"):
        own = {"loss": "kto"} if loss == "kto" else {}
        dpo(output / loss, inputs["base"], pairs, zero_stage=zero_stage, **own, **changes)
    frozen = 3 if zero_stage == 3 else 0
    zero = {f"{role}_zero_stage": zero_stage for role in ("actor", "critic")}
    zero |= {f"{role}_zero_stage": frozen for role in ("reference", "reward")}
    ppo(output / "ppo", inputs["base"], inputs["reward"], pairs, ema_decay=0.5, **zero, **changes, **(of_ppo or {}))


EXPORTS = ("sft/model", "reward/model", "dpo/model", "kto/model", "ppo/actor", "ppo/actor_ema", "ppo/critic")


def exported(output: Path) -> dict[str, Tensor]:
    return {
        f"{folder}: {name}": value
        for folder in EXPORTS
        for name, value in load_file(output / folder / "model.safetensors").items()
    }


def assert_same_run(output: Path, other: Path) -> None:
    """The same weights and metrics up to the order of sums."""
    assert engines.furthest(exported(output), exported(other)) < 2e-5
    for stage in ("sft", "reward", "dpo", "kto", "ppo"):
        mine, theirs = (read_metrics(folder / stage / "metrics.jsonl") for folder in (output, other))
        assert len(mine) == len(theirs)
        for left, right in zip(mine, theirs, strict=True):
            for name, value in left.items():
                if not name.startswith(("time/", "perf/")):
                    assert value == pytest.approx(right[name], rel=2e-3, abs=2e-5), name


# --- what was in memory when a model was exported --------------------------------------------------------------------

PROBE = [[5, 9, 2, 44, 101, 7], [200, 3, 3, 17, 60, 81]]


def outputs(model: Any) -> torch.Tensor:
    """Of a transformers model: logits of PROBE at every position, or the pooled score of each row."""
    with torch.no_grad():
        model.eval()
        return model(input_ids=torch.tensor(PROBE, device=model.device), use_cache=False).logits.float().cpu()


@contextlib.contextmanager
def recorded_exports() -> Iterator[dict[str, torch.Tensor]]:
    """While inside, every export of a stage leaves `outputs` of the model in memory under the folder's name."""
    seen: dict[str, torch.Tensor] = {}

    def recording(model: Any, folder: Path, **options: Any) -> None:
        if "full_value" not in options:  # the moving average is not what the module holds
            seen[folder.name] = outputs(model)
        export(model, folder, **options)

    with contextlib.ExitStack() as stack:
        for main in (step1_sft.main, step2_dpo.main, step2_reward.main, step3_ppo.main):
            stack.enter_context(mock.patch.object(main, "export", recording))
        yield seen
