"""The models that a stage starts from: those of earlier stages of the same run, or models that flags name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.models.names import ORIGIN, Kind, has_scalar_head, origin, read_config, resolve
from rlhf.pipeline.config import PipelineConfig
from rlhf.stage_config import RunSettings
from rlhf.stages.problems import config_of, look_at_models
from rlhf.stages.result import is_finished
from rlhf.stages.spec import ModelConfig, ModelInput, ModelOutput, Models, StageSpec


@dataclass
class Inputs:
    """The inputs of a stage, as train.py finds them.

    `settings` are the stage's settings that name its folder and models. `named` are models that exist already, with
    the flag that names each. `coming` are the config.json files of models that earlier stages of the run will make.
    """

    settings: dict[str, Any]
    named: dict[ModelInput, tuple[str, str]] = field(default_factory=dict)
    coming: dict[str, ModelConfig] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)  # pipeline settings that named a model
    idle: list[ModelInput] = field(default_factory=list)  # that the stage does not need with its settings

    def look(self, *, trust_remote_code: bool = False, facts: bool = False) -> tuple[Models, list[str]]:
        """The config.json of each model as it will be when the stage starts, and the problems of those that exist. With
        `facts`, known models are taken from what ships with the project, and no network is asked for them."""
        models, found = look_at_models(self.named, trust_remote_code=trust_remote_code, facts=facts)
        return {**self.coming, **models}, found


def stage_inputs(
    spec: StageSpec,
    specs: Sequence[StageSpec],
    pipeline: PipelineConfig,
    settings: Mapping[str, Any],
    made: Mapping[str, ModelConfig],
) -> Inputs:
    """The folder of a stage and the models that it starts from.

    `specs` are all stages. `made` are the config.json files of the models that the stages planned so far will make, by
    label.
    """
    inputs = Inputs({"output_dir": pipeline.output_dir / spec.package})
    for each in spec.inputs:
        if not each.needed(settings):
            inputs.idle.append(each)
            continue
        maker = next(((s, o) for s in specs for o in s.outputs if each.made_as and o.label == each.made_as), None)
        if maker is None:
            _named_input(inputs, each, pipeline, settings)
        else:
            shared = {flag for s in specs for i in s.inputs if not i.made_as for flag in i.flags}
            _made_input(inputs, each, spec, maker, pipeline, made, shared)
    return inputs


def _named_input(inputs: Inputs, each: ModelInput, pipeline: PipelineConfig, settings: Mapping[str, Any]) -> None:
    """A model that the stage's own setting names, or a flag."""
    flag = next((flag for flag in each.flags if getattr(pipeline, flag)), each.flags[-1] if each.flags else "")
    name = settings.get(each.setting) or (getattr(pipeline, flag) if flag else "") or ""
    inputs.used.add(flag)
    if not settings.get(each.setting):
        inputs.settings[each.setting] = name
    inputs.named[each] = (name, _option(flag or each.setting))


def _made_input(
    inputs: Inputs,
    each: ModelInput,
    spec: StageSpec,
    maker: tuple[StageSpec, ModelOutput],
    pipeline: PipelineConfig,
    made: Mapping[str, ModelConfig],
    shared: set[str],
) -> None:
    """A model that another stage makes, in this run or before it, unless a flag names another one.

    `shared` are flags that also name the model of another stage: such a flag may mean that one, so a finished stage's
    model is used where the named one is not of the right kind.
    """
    stage, output = maker
    folder = pipeline.output_dir / stage.package
    inputs.settings[each.setting] = str(folder / output.folder)
    if runs(stage, pipeline):
        if each.made_as in made:
            inputs.coming[each.setting] = made[each.made_as]
        return
    here = is_finished(folder)
    flag = next((flag for flag in each.flags if getattr(pipeline, flag)), None)
    name = getattr(pipeline, flag) if flag else ""
    if flag and (not here or flag not in shared or _is_kind(name, each.kind)):
        inputs.used.add(flag)
        inputs.settings[each.setting] = resolve(name)
        inputs.named[each] = (name, _option(flag))
    elif here:
        if (config := config_of(inputs.settings[each.setting])) is not None:
            inputs.coming[each.setting] = config
    else:
        flags = [flag for i in stage.inputs for flag in i.flags if i.kind == each.kind and getattr(pipeline, flag)]
        way = f", as {_option(each.flags[0])} {getattr(pipeline, flags[0])} if that answers already" if flags else ""
        inputs.problems.append(
            f"stage {spec.number} needs {each.what}, and there is no finished one in {folder}; "
            f"add stage {stage.number} to --stages, or give {_option(each.flags[0])} a trained one{way}"
        )


def models_made(spec: StageSpec, config: RunSettings, models: Models, *, finished: bool) -> dict[str, ModelConfig]:
    """The config.json files of the models that a stage makes of its inputs, by label, as far as they are known.

    Those of a finished stage are on disk; others are what they will be.
    """
    made: dict[str, ModelConfig] = {}
    for output in spec.outputs:
        if finished:
            if (found := config_of(str(config.output_dir / output.folder))) is not None:
                made[output.label] = found
        elif output.of in models and output.made(config):
            kind = "ForSequenceClassification" if output.kind == "reward" else "ForCausalLM"
            labels = {"num_labels": 1} if output.kind == "reward" else {}
            # figures of an earlier training do not hold for what the stage makes of the model
            changes = {"architectures": [kind], "held_out": None, **labels}
            source = models[output.of]
            made[output.label] = {**source, ORIGIN: origin(source, str(getattr(config, output.of))), **changes}
    return made


def unused_flags(specs: Sequence[StageSpec], inputs: Sequence[Inputs], pipeline: PipelineConfig) -> list[str]:
    """A line for each given flag whose only use is a model that the run makes itself, or that no stage of it needs."""
    used = {flag for one in inputs for flag in one.used}
    makers = {output.label: spec for spec in specs for output in spec.outputs}
    named = {flag for spec in specs for each in spec.inputs if each.made_as not in makers for flag in each.flags}
    found: dict[str, str] = {}
    for spec, each in [(s, i) for s in specs for i in s.inputs if i.made_as in makers]:
        for flag in each.flags:
            if getattr(pipeline, flag) and flag not in used | named | found.keys():
                maker = makers[each.made_as]
                why = f"while stage {maker.number} runs" if runs(maker, pipeline) else f"without stage {spec.number}"
                found[flag] = f"{_option(flag)} has no effect {why}; leave it out, or choose other --stages"
    for each in (each for one in inputs for each in one.idle):
        for flag in each.flags:
            if getattr(pipeline, flag) and flag not in used:
                found[flag] = (
                    f"{_option(flag)} has no effect: with these settings no stage needs {each.what}; leave it out"
                )
    return list(found.values())


def left_out(
    specs: Sequence[StageSpec], pipeline: PipelineConfig, settings: Mapping[str, Mapping[str, Any]]
) -> list[StageSpec]:
    """The stages that a run of all stages leaves out: what they make is only for inputs that are not needed. `settings`
    are those of each package."""
    if pipeline.selected:
        return []
    idle = []
    for spec in specs:
        labels = {output.label for output in spec.outputs}
        users = [(other, each) for other in specs for each in other.inputs if each.made_as in labels]
        if users and not any(each.needed(settings[other.package]) for other, each in users):
            idle.append(spec)
    return idle


def runs(spec: StageSpec, pipeline: PipelineConfig) -> bool:
    """Whether a stage is selected."""
    return not pipeline.selected or spec.number in pipeline.selected


def _is_kind(name: str, kind: Kind) -> bool:
    if not Path(resolve(name)).is_dir():  # the hub is not asked: its pretrained models are not reward models
        return kind != "reward"
    try:
        return kind == "any" or has_scalar_head(read_config(name)) == (kind == "reward")
    except UserError:
        return False


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
