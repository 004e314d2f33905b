"""The one list of what is wrong with a stage's settings and inputs, found before torch is imported.

The plan and the stage itself ask the same functions, so nothing that a stage refuses passes a plan.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from rlhf import hardware, process
from rlhf.errors import ModelError
from rlhf.hardware import Machine
from rlhf.memory.known import known_config
from rlhf.metrics import tracker_problems
from rlhf.models.names import check_model, read_config
from rlhf.stage_config import BatchSettings, RunSettings, stage_engine_problems
from rlhf.stages.spec import ModelConfig, ModelInput, Models, StageSpec


def settings_problems(spec: StageSpec, config: RunSettings, machine: Machine) -> list[str]:
    """Problems of a stage's settings with each other, on this machine and number of ranks."""
    return [
        *config.problems(machine),
        *(config.batch_problems(spec.package, machine.world_size) if isinstance(config, BatchSettings) else []),
        *stage_engine_problems(config, spec.package, gpus=machine.gpus, bf16=machine.bf16),
        *tracker_problems(config.trackers),
    ]


def look_at_models(
    names: Mapping[ModelInput, tuple[str, str]], *, trust_remote_code: bool = False, facts: bool = False
) -> tuple[dict[str, ModelConfig], list[str]]:
    """The config.json of each model that can be read, by setting, and the problems of the models.

    `names`: for each input the model's name and the flag that names it in messages. `facts`: the sizes of known models
    are enough, so that nothing is fetched for them.
    """
    models: dict[str, ModelConfig] = {}
    found: list[str] = []
    for each, (name, flag) in names.items():
        known = known_config(name) if facts else None
        if known is not None:
            models[each.setting] = known
            continue
        wrong = check_model(name, flag=flag, kind=each.kind, trust_remote_code=trust_remote_code)
        found += wrong
        if not wrong:
            models[each.setting] = read_config(name)
    return models, found


def config_of(name: str) -> ModelConfig | None:
    """The config.json of a model; None if it cannot be read."""
    try:
        return read_config(name)
    except ModelError:
        return None


def stage_problems(spec: StageSpec, config: RunSettings, machine: Machine) -> list[str]:
    """All that is wrong with a stage's settings and the models and data that they name, as they are now."""
    needed = [each for each in spec.inputs if each.needed(config.model_dump())]
    names = {each: (getattr(config, each.setting), f"--{each.setting.replace('_', '-')}") for each in needed}
    models, found = look_at_models(names, trust_remote_code=config.trust_remote_code)
    return settings_problems(spec, config, machine) + found + input_problems(spec, config, models, machine)


def input_problems(spec: StageSpec, config: RunSettings, models: Models, machine: Machine) -> list[str]:
    """Problems that the stage's own check finds in its inputs."""
    return spec.problems(config, models, machine)


def this_machine() -> Machine:
    """The hardware of this run, from the launcher's environment variables."""
    ranks, local = process.world_size(), process.local_world_size()
    gpus = hardware.accelerators() > 0 and os.environ.get("DS_ACCELERATOR") != "cpu"
    return Machine(ranks=local, nodes=max(1, ranks // local), gpus=gpus, bf16=gpus and hardware.bf16_gpus())
