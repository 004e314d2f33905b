"""From recipe and flags to the stages' configs, with everything checked before a rank is started.

Precedence: default < recipe's `pipeline:` < recipe's section of the stage < flag < `--set`; what `prepare` made goes
before the recipe. Every problem is collected and reported at once. Imports no torch and no stage: those are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import build_leniently, parse_sets, targets
from rlhf.errors import ConfigError, UserError
from rlhf.files import folder_problems
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.launch import Placement
from rlhf.pipeline.placement import place
from rlhf.pipeline.preparation import prepared_before
from rlhf.pipeline.recipes import Request, StageSpec, module_problems, read_recipe
from rlhf.pipeline.stage_inputs import is_finished, model_problems, stage_inputs
from rlhf.stage import CONFIG_NAME, refuse_differences, settings_problems
from rlhf.stage_config import RunSettings

_ALIKE = ("data_split", "data_seed", "eval_ratio")  # stages whose splits differ would see each other's prompts


@dataclass
class StagePlan:
    """One stage to run. `sources` says for every setting that was given where it came from."""

    spec: StageSpec
    config: RunSettings
    sources: dict[str, str]
    finished: bool

    @property
    def managed(self) -> set[str]:
        """Settings that train.py works out."""
        return set(_managed(self.spec))


@dataclass
class Plan:
    pipeline: PipelineConfig
    given: dict[str, str]  # pipeline settings that were given, and from where
    recipe: str | None
    placement: Placement
    stages: list[StagePlan]
    prepare: dict[str, Any] | None
    evaluate: dict[str, Any] | None
    base_model: str


def make_plan(
    specs: Sequence[StageSpec],
    request: Request,
    *,
    data_problems: Callable[[RunSettings], list[str]],
    evaluation_problems: Callable[..., list[str]] = lambda settings, pending: [],
    prepared: Mapping[str, Any] | None = None,
) -> Plan:
    """Raises ConfigError with all problems. `prepared`: the result of the recipe's preparation, once it has run; before
    that, what it will bring (models, data) is not missed."""
    problems: list[str] = []
    recipe = read_recipe(request.recipe, specs, problems)
    classes = {spec.package: spec.config_class for spec in specs}
    sections = {key: None for key in ("prepare", "evaluate") if recipe.get(key) is not None}
    sets, wrong = parse_sets(request.sets, {**classes, **sections})
    problems += wrong

    prepare, evaluate = (_section(key, recipe, sets) for key in ("prepare", "evaluate"))
    if prepare is not None:
        problems += module_problems(prepare)
        if prepared is None and not request.overwrite:
            prepared = _prepared_before(request, recipe, prepare, problems)
    brought = {key: value for key, value in (prepared or {}).items() if key != "evaluate"}
    layers = {"prepare": brought, "recipe": recipe.get("pipeline", {}), "flag": dict(request.flags)}
    values = {key: value for layer in layers.values() for key, value in layer.items()}
    given = {key: source for source, layer in layers.items() for key in layer}
    pipeline, wrong = build_leniently(PipelineConfig, values, where="pipeline")
    problems += [_as_flag(problem, request.flags) for problem in wrong]
    placement, wrong = place(pipeline)
    problems += [*pipeline.problems(placement.world_size), *wrong]
    problems += folder_problems(pipeline.output_dir)

    stages: list[StagePlan] = []
    pending = prepare is not None and prepared is None
    for spec in specs:
        if spec.number not in pipeline.selected:
            continue
        settings, sources, wrong = _stage_values(spec, layers, recipe.get(spec.package, {}), sets.get(spec.package, {}))
        problems += wrong
        inputs = stage_inputs(spec, specs, pipeline, settings)
        problems += inputs.problems
        settings |= inputs.settings
        config, wrong = build_leniently(spec.config_class, settings, where=spec.package)
        problems += wrong
        problems += settings_problems(config, spec.package, world_size=placement.world_size, gpus=placement.gpus)
        if not pending:
            problems += model_problems(inputs, config) + data_problems(config)
        finished = not request.overwrite and not pending and _state(config, spec, problems)
        stages.append(StagePlan(spec, config, {**sources, **dict.fromkeys(inputs.settings, "train.py")}, finished))
    problems += _unlike(stages)
    if evaluate is not None:
        evaluate = {**(prepared or {}).get("evaluate", {}), **evaluate}
        problems += evaluation_problems(evaluate, pending=pending)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    base = pipeline.actor_model or next((getattr(s.config, "model", "") for s in stages if s.spec.number == 1), "")
    return Plan(pipeline, given, request.recipe, placement, stages, prepare, evaluate, base)


def _section(key: str, recipe: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any] | None:
    return {**recipe[key], **sets.get(key, {})} if key in recipe else None


# --- settings of a stage ----------------------------------------------------------------------------------------------


def _stage_values(
    spec: StageSpec, layers: Mapping[str, Mapping[str, Any]], section: Mapping[str, Any], sets: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """A stage's settings from all layers, where each came from, and what cannot be."""
    problems = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    spread = {source: _spread(spec.package, layer) for source, layer in layers.items()}
    for name, value in spread["flag"].items():
        if name in sets and sets[name] != value:
            problems.append(
                f"--{_flag_of(spec.package, name)} {value} and --set {spec.package}.{name}={sets[name]} disagree; "
                "drop one of them"
            )
    for name, way in _managed(spec).items():
        if name in sets or name in section:
            problems.append(f"{spec.package}.{name} is worked out by train.py; {way}")
    ordered = [("prepare", spread["prepare"]), ("recipe", spread["recipe"]), ("recipe", section)]
    for source, layer in [*ordered, ("flag", spread["flag"]), ("--set", sets)]:
        kept = {name: value for name, value in layer.items() if name not in _managed(spec)}
        values |= kept
        sources |= dict.fromkeys(kept, source)
    return values, sources, problems


def _spread(package: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Pipeline settings as the stage settings that they stand for."""
    values = {}
    for name, value in layer.items():
        if name in PipelineConfig.model_fields and value is not None:
            for target in targets(PipelineConfig.model_fields[name]):
                section, _, key = target.partition(".")
                if section == package:
                    values[key] = value
    return values


def _flag_of(package: str, key: str) -> str:
    fields = PipelineConfig.model_fields
    return next(n for n in fields if f"{package}.{key}" in targets(fields[n])).replace("_", "-")


def _as_flag(problem: str, flags: Mapping[str, Any]) -> str:
    """`pipeline.num_gpus=-1 is …` as the user typed it, if it was typed: `--num-gpus -1 is …`."""
    name = problem.partition("=")[0].removeprefix("pipeline.")
    return f"--{name.replace('_', '-')} {problem.partition('=')[2]}" if name in flags else problem


def _managed(spec: StageSpec) -> dict[str, str]:
    """Settings that train.py works out, and what to use instead."""
    managed = {"output_dir": "use --output-dir"}
    if spec.number == 3:
        managed |= {"actor_model": "use --sft-model", "reward_model": "use --reward-model"}
    return managed


def _prepared_before(
    request: Request, recipe: Mapping[str, Any], prepare: Mapping[str, Any], problems: list[str]
) -> dict[str, Any] | None:
    default = PipelineConfig.model_fields["output_dir"].default
    output = request.flags.get("output_dir") or recipe.get("pipeline", {}).get("output_dir") or default
    try:
        return prepared_before(Path(output), prepare)
    except UserError as error:
        problems += error.problems
        return None


def _state(config: RunSettings, spec: StageSpec, problems: list[str]) -> bool:
    """Whether the stage is finished in its folder; a run there with other settings is a problem."""
    try:
        refuse_differences(config.output_dir / CONFIG_NAME, config, spec.package)
        return is_finished(config.output_dir)
    except UserError as error:
        problems += error.problems
        return False


def _unlike(stages: Sequence[StagePlan]) -> list[str]:
    found = []
    for name in _ALIKE:
        values = {s.spec.package: getattr(s.config, name) for s in stages if name in type(s.config).model_fields}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{package}.{name}={value}" for package, value in values.items())
            found.append(f"{shown}: stages must split the data alike, else a prompt reaches two of them")
    return found
