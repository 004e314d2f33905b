"""What a stage starts from: earlier stages' folders of the same run, or models that were named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.models.names import Kind, check_model, has_scalar_head, length_problems, read_config, resolve
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.recipes import StageSpec
from rlhf.stage import read_result
from rlhf.stage_config import RunSettings


@dataclass
class Inputs:
    """What train.py works out for a stage, the models to look at (name, flag, kind), and what is missing."""

    settings: dict[str, Any]
    models: list[tuple[str, str, Kind]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def stage_inputs(
    spec: StageSpec, specs: Sequence[StageSpec], pipeline: PipelineConfig, settings: Mapping[str, Any]
) -> Inputs:
    """The folder of a stage and the models that it starts from."""
    folders = {each.number: pipeline.output_dir / each.package for each in specs}
    inputs = Inputs({"output_dir": folders[spec.number]})
    if spec.number == 1:
        inputs.models.append((settings.get("model") or "", "--actor-model", "language"))
    elif spec.number == 2:
        name = settings.get("model") or pipeline.reward_model or pipeline.actor_model or ""
        inputs.settings["model"] = name
        inputs.models.append((name, "--reward-model" if pipeline.reward_model else "--actor-model", "any"))
    else:
        _actor_input(inputs, pipeline, folders[1])
        _reward_input(inputs, pipeline, folders[2])
    return inputs


def _actor_input(inputs: Inputs, pipeline: PipelineConfig, stage1: Path) -> None:
    inputs.settings["actor_model"] = str(stage1 / "model")
    if pipeline.sft_model:
        inputs.settings["actor_model"] = resolve(pipeline.sft_model)
        inputs.models.append((pipeline.sft_model, "--sft-model", "language"))
    elif 1 in pipeline.selected:
        if pipeline.actor_model:  # for its longest sequence
            inputs.models.append((pipeline.actor_model, "--actor-model", "language"))
    elif not is_finished(stage1):
        inputs.problems.append(
            f"stage 3 needs an actor from stage 1, and {stage1} holds no finished one; "
            "add stage 1 to --stages, or give --sft-model"
        )


def _reward_input(inputs: Inputs, pipeline: PipelineConfig, stage2: Path) -> None:
    inputs.settings["reward_model"] = str(stage2 / "model")
    if 2 in pipeline.selected:
        return
    here = is_finished(stage2)
    if pipeline.reward_model and (not here or _is_reward_model(pipeline.reward_model)):
        inputs.settings["reward_model"] = resolve(pipeline.reward_model)
        inputs.models.append((pipeline.reward_model, "--reward-model", "reward"))
    elif not here:
        inputs.problems.append(
            f"stage 3 needs a reward model, and {stage2} holds no finished one; "
            "add stage 2 to --stages, or give --reward-model a trained one"
        )


def model_problems(inputs: Inputs, config: RunSettings) -> list[str]:
    """What is wrong with the models that a stage starts from; sequences must fit their positions."""
    longest = getattr(config, "max_prompt_length", 0) + getattr(config, "max_response_length", 0)
    found = []
    for name, flag, kind in inputs.models:
        found += check_model(name, flag=flag, kind=kind) or length_problems(name, longest)
    return found


def _is_reward_model(name: str) -> bool:
    try:
        return Path(resolve(name)).is_dir() and has_scalar_head(read_config(name))
    except UserError:
        return False


def is_finished(folder: Path) -> bool:
    return read_result(folder) is not None
