"""What `train.py --dry-run` prints: the commands, the batch algebra, and the value of every option."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rlhf.config import flag_of
from rlhf.console import say, table
from rlhf.models.names import resolve
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.launch import command, shown
from rlhf.pipeline.memory import show_memory
from rlhf.pipeline.placement import placement_text
from rlhf.pipeline.plan import Plan, StagePlan, left_out_lines
from rlhf.stage_config import BatchSettings, RunSettings, resolve_dtype
from rlhf.stages.result import CONFIG_NAME


def show_plan(plan: Plan, *, peak_share: float | None = None) -> None:
    """Print the whole plan; nothing is written or started. `peak_share`: of the GPUs' peak, for the time."""
    say(f"ranks: {placement_text(plan.placement)}")
    if plan.prepare is not None:
        say(f"prepare: python -m {plan.prepare['module']}, which makes what is still empty below")
    for stage in plan.stages:
        _show_stage(plan, stage)
    for line in left_out_lines(plan):
        say(f"\n{line}")
    if plan.evaluate is not None:
        say(f"\nevaluate: {_listed(plan.evaluate)}")
    say("")
    show_memory(plan, share=peak_share)
    rows = [[f"--{name.replace('_', '-')}", *_option(plan, name)] for name in PipelineConfig.model_fields]
    say("")
    table("Options", ["option", "value", "from", "sets"], [row for row in rows if row[1] != ""])
    table("Settings of stages that differ from their defaults", ["setting", "stages", "value", "from"], _changed(plan))


def _changed(plan: Plan) -> list[list[str]]:
    """Each setting once for all the stages in which it has the same value from the same source."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for stage in plan.stages:
        for name, source in stage.sources.items():
            if stage.config.changed(name) and name != "output_dir":
                key = (name, _text(getattr(stage.config, name)), source)
                rows.setdefault(key, []).append(str(stage.spec.number))
    return [[name, " ".join(numbers), value, source] for (name, value, source), numbers in rows.items()]


def _show_stage(plan: Plan, stage: StagePlan) -> None:
    config, folder = stage.config, stage.config.output_dir
    say(f"\n[{stage.spec.number}] {stage.spec.package}{': finished, will not run again' if stage.finished else ''}")
    for each in (each for each in stage.spec.inputs if each.needed(config.model_dump())):
        name = stage.model(each.setting)
        say(f"    {each.setting}: {resolve(name) if name else '(from prepare)'}")
    if isinstance(config, BatchSettings):
        say(f"    {config.batch_algebra(plan.placement.world_size)}")
    if method := config.method():
        say(f"    {method}")
    gpus = plan.machine.gpus
    dtype = resolve_dtype(config.dtype, gpus=gpus, bf16=plan.machine.bf16)
    say(f"    dtype: {dtype}, {_zero(config, gpus=gpus)}")
    ranks = plan.placement.world_size
    words = command(stage.spec.package, ["--config", str(folder / CONFIG_NAME)])
    say(f"    {f'{ranks} × ' if ranks > 1 else ''}{shown(words)}")


def _zero(config: RunSettings, *, gpus: bool) -> str:
    """`ZeRO 1` or, with several models, `ZeRO actor 2, critic 2, reference 0, reward model 0`."""
    stages = config.zero_stages(gpus=gpus)
    return "ZeRO " + ", ".join(f"{role} {stage}" if len(stages) > 1 else str(stage) for role, stage in stages.items())


def _option(plan: Plan, name: str) -> list[str]:
    """An option's value, its source, and the settings that it sets; empty if it was not given and has no default."""
    value, source = getattr(plan.pipeline, name), plan.given.get(name, "")
    meaning = ", ".join(_sets(plan, name))
    names_a_model = name in {flag for spec in plan.specs for each in spec.inputs for flag in each.flags}
    if names_a_model and value and resolve(value) != value:
        meaning = f"{resolve(value)}{f' as {meaning}' if meaning else ''}"
    if name == "num_gpus":
        return [str(plan.placement.ranks), source or "default", placement_text(plan.placement)]
    if not source and value is None:
        return ["", "", ""]
    return [_text(value), source or "default", meaning]


def _sets(plan: Plan, name: str) -> list[str]:
    """The settings of stages that a pipeline setting sets."""
    return [
        f"{spec.package}.{field}"
        for spec in plan.specs
        for field in spec.config_class.model_fields
        if flag_of(spec.config_class, field) == name and field not in spec.managed
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in settings.items())


def continue_command(arguments: list[str]) -> str:
    """The command that continues a run: the same one without --overwrite."""
    return shown([sys.executable, sys.argv[0], *(word for word in arguments if word != "--overwrite")])
