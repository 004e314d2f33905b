"""One tiny model of a family: its folder, the settings of its runs, and what the plan says of each column of the table.

`scripts.family_checks` runs the columns.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import step1_sft.main
import step1_sft.spec
import step2_reward.main
import step2_reward.spec
import step3_ppo.main
import step3_ppo.spec
from rlhf.errors import error_lines
from rlhf.files import write_text
from rlhf.hardware import Machine
from rlhf.models.causal_model import head_logits
from rlhf.models.export import export
from rlhf.models.loading import backbone, load_tokenizer, unwrap
from rlhf.stages.problems import stage_problems
from rlhf.stages.spec import StageSpec
from scripts.family_configs import FAMILIES, Family
from scripts.family_plain import PROBE, plain_lm
from step1_sft.config import SFTConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Measured
from step3_ppo.passes import ForwardPasses

SFT, REWARD, PPO, LORA = "SFT", "reward", "PPO", "LoRA"
PACKING, PARALLEL, EXPORT, GREEDY = "packing", "tensor parallel", "exact export", "greedy"
COLUMNS = (SFT, REWARD, PPO, LORA, PACKING, PARALLEL, EXPORT, GREEDY)
OK, REFUSED, WRONG, NONE = "ok", "refused", "wrong", "–"

RANKS = 2  # of the column of tensor parallelism
ROWS = 8  # of an optimiser step, which takes all rows of a stage
COMMON: dict[str, Any] = {
    "max_prompt_length": 80, "max_response_length": 48, "data_split": "1,1,1", "max_samples": ROWS,
    "max_eval_samples": 6, "eval_ratio": 0.2, "mini_batch_size": ROWS, "micro_batch_size": 4, "max_steps": 1,
    "no_dropout": True, "dtype": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a cell of the table says, and why: the plan's words, or what went wrong."""

    state: str
    why: str = ""


def write_pairs(path: Path) -> str:
    """A JSONL file of questions of several lengths, each with a polite and a rude answer; written once."""
    rows = [
        {
            "prompt": f"What is {i}+{i % 7}{', please' * (i % 3)}?",
            "chosen": f"It is {i + i % 7}{', I think' * (i % 4)}.",
            "rejected": f"{i} no" + "!" * (i % 3),
        }
        for i in range(80)
    ]
    if not path.exists():
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Bench:
    """One family in a folder of its own in `shared`, with the cells that it has so far."""

    def __init__(self, family: Family, shared: Path) -> None:
        self.family, self.shared = family, shared
        self.folder = shared / family.name.replace(" ", "_").replace(",", "")
        self.base = self.folder / "base"
        self.cells: dict[str, Cell] = {}
        self.in_memory: dict[str, Tensor] = {}  # logits of PROBE when a folder was exported
        self.pairs = write_pairs(shared / "pairs.jsonl")

    def said(self, error: BaseException) -> str:
        """The first line of an error, with its kind, without the folders of this bench."""
        kind = type(error).__name__
        text = error_lines(error)[0][0]
        return self._without_paths(text if text.startswith(kind) else f"{kind}: {text}")

    def _without_paths(self, text: str) -> str:
        return text.replace(str(self.base), "MODEL").replace(str(self.folder), "RUN").replace(str(self.shared), "")

    # --- the plan -----------------------------------------------------------------------------------------------------

    def plan(self, column: str) -> list[str]:
        """The lines with which the plan refuses a column; none if it lets the column through."""
        spec, config, machine = self._planned(column)
        return [self._without_paths(line) for line in stage_problems(spec, config, machine)]

    def _planned(self, column: str) -> tuple[StageSpec, Any, Machine]:
        one = Machine(ranks=1)
        if column == REWARD:
            return step2_reward.spec.SPEC, self.reward_config("plan"), one
        if column in (PPO, GREEDY):
            return step3_ppo.spec.SPEC, self.ppo_config("plan"), one
        if column == PARALLEL:
            return step3_ppo.spec.SPEC, self.ppo_config("plan", inference_tp_size=RANKS), Machine(ranks=RANKS)
        changes = {PACKING: {"packing": True}, LORA: {"lora_rank": 2}}.get(column, {})
        return step1_sft.spec.SPEC, self.sft_config("plan", **changes), one

    # --- settings and runs --------------------------------------------------------------------------------------------

    def _values(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {"output_dir": self.folder / name, "data_path": [self.pairs], **COMMON, **changes}

    def sft_config(self, name: str, **changes: Any) -> SFTConfig:
        return SFTConfig(**self._values(name, {"model": str(self.base), "learning_rate": 1e-3, **changes}))

    def reward_config(self, name: str, **changes: Any) -> RewardConfig:
        return RewardConfig(**self._values(name, {"model": str(self.base), "learning_rate": 1e-3, **changes}))

    def ppo_config(self, name: str, **changes: Any) -> PPOConfig:
        values: dict[str, Any] = {
            "actor_model": str(self.base), "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3, "iterations": 2, "max_steps": None, "rollout_batch_size": 8,
            "mini_batch_size": 8, "max_response_length": 12, "ema": False, "force": True,
            "inference_dtype": "fp32", "inference_copy": "on",
        }  # fmt: skip
        if "reward_model" not in changes:
            values["reward_model"] = str(self.reward_model)
        return PPOConfig(**self._values(name, values | changes))

    @property
    def reward_model(self) -> Path:
        """The family's own reward model if it could be trained, else one of a Llama, with the family's tokenizer."""
        if self.is_ok(REWARD):
            return self.folder / "reward/model"
        folder = self.folder / "llama_reward"
        if not folder.exists():
            shutil.copytree(llama_reward_model(self.shared), folder)
            self.tokenizer.save_pretrained(folder)
        return folder

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(str(self.base))

    @cached_property
    def base_lm(self) -> Any:
        """The base model in plain transformers."""
        return plain_lm(self.base)

    def is_ok(self, column: str) -> bool:
        """Whether a column has been tried and works."""
        cell = self.cells.get(column)
        return cell is not None and cell.state == OK

    @contextlib.contextmanager
    def recorded(self, run: str) -> Iterator[None]:
        """While inside, each export of a language model leaves its logits of PROBE as "run/folder"."""

        def recording(model: Any, folder: Path, **options: Any) -> None:
            lm = unwrap(model)
            # the moving average is not what the module holds, and a critic has no logits
            if "full_value" not in options and lm.get_output_embeddings() is not None:
                lm.eval()
                with torch.no_grad():
                    hidden = backbone(model)(input_ids=torch.tensor(PROBE), use_cache=False)[0]
                    self.in_memory[f"{run}/{folder.name}"] = head_logits(lm, hidden)
            export(model, folder, **options)

        with contextlib.ExitStack() as stack:
            for main in (step1_sft.main, step3_ppo.main):
                stack.enter_context(mock.patch.object(main, "export", recording))
            yield


@contextlib.contextmanager
def recorded_measures() -> Iterator[list[Measured]]:
    """While inside, what stage 3 measures of each rollout is kept."""
    kept: list[Measured] = []
    measure = ForwardPasses.measure

    def recording(passes: ForwardPasses, *arguments: Any) -> Measured:
        kept.append(measure(passes, *arguments))
        return kept[-1]

    with mock.patch.object(ForwardPasses, "measure", recording):
        yield kept


def sampled(measured: Measured) -> torch.Tensor:
    """The sampler's log-probabilities of a rollout's response tokens, row by row."""
    return torch.tensor([value for row in measured.rollout.sampler_logprobs for value in row])


@contextlib.contextmanager
def recorded_outputs(engine: Any) -> Iterator[list[Any]]:
    """While inside, what the model of an engine returns is kept."""
    kept: list[Any] = []
    hook = engine.module.register_forward_hook(lambda module, arguments, output: kept.append(output))
    try:
        yield kept
    finally:
        hook.remove()


def llama_reward_model(shared: Path) -> Path:
    """A trained reward model for families that have none of their own; made once in a process."""
    bench = Bench(FAMILIES["llama"], shared / f"for_all-{os.getpid()}")
    folder = bench.folder / "reward/model"
    if not folder.exists():
        bench.family.save(bench.base)
        step2_reward.main.run(bench.reward_config("reward"))
    return folder
