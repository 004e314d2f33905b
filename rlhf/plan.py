"""From recipe and flags to the stages' configs, with everything checked before a rank is started.

Precedence: default < recipe's `pipeline:` < recipe's section of the stage < flag < `--set`; what `prepare` made goes
before the recipe. Every problem is collected and reported at once. Imports no torch and no stage: those are passed in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config import build_leniently, parse_sets, read_yaml, targets
from rlhf.errors import ConfigError, UserError, nearest
from rlhf.files import folder_problems
from rlhf.launch import ROOT, Placement
from rlhf.model_names import check_model, has_scalar_head, read_config, resolve
from rlhf.pipeline_config import PipelineConfig
from rlhf.placement import place
from rlhf.stage import CONFIG_NAME, read_result, refuse_differences, settings_problems
from rlhf.stage_config import RunSettings

RECIPES = ROOT / "scripts" / "recipes"
PIPELINE_NAME = "pipeline.yaml"
_ALIKE = ("data_split", "data_seed", "eval_ratio")  # stages whose splits differ would see each other's prompts
_MODEL_FLAGS = ("actor_model", "reward_model", "sft_model", "data_path")


@dataclass(frozen=True)
class StageSpec:
    """A stage that a pipeline is made of."""

    number: int
    package: str
    config_class: type[RunSettings]


@dataclass(frozen=True)
class Request:
    """What the user typed."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    recipe: str | None = None
    overwrite: bool = False


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
    notes: list[str]  # choices made for the user, to be said aloud
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
    prepared: Mapping[str, Any] | None = None,
) -> Plan:
    """Raises ConfigError with all problems. `prepared`: the result of the recipe's preparation, once it has run; before
    that, what it will bring (models, data) is not missed."""
    problems: list[str] = []
    notes: list[str] = []
    name = _choose_recipe(request, notes)
    recipe = _read_recipe(name, specs, problems)
    classes = {spec.package: spec.config_class for spec in specs}
    sections = {key: None for key in ("prepare", "evaluate") if recipe.get(key) is not None}
    sets, wrong = parse_sets(request.sets, {**classes, **sections})
    problems += wrong

    layers = {"prepare": dict(prepared or {}), "recipe": recipe.get("pipeline", {}), "flag": dict(request.flags)}
    values = {key: value for layer in layers.values() for key, value in layer.items()}
    given = {key: source for source, layer in layers.items() for key in layer}
    pipeline, wrong = build_leniently(PipelineConfig, values, where="pipeline")
    problems += [_as_flag(problem, request.flags) for problem in wrong]
    placement, wrong = place(pipeline)
    problems += [*pipeline.problems(placement.world_size), *wrong]
    problems += folder_problems(pipeline.output_dir)

    stages: list[StagePlan] = []
    pending = recipe.get("prepare") is not None and prepared is None
    for spec in specs:
        if spec.number not in pipeline.selected:
            continue
        settings, sources, wrong = _stage_values(spec, layers, recipe.get(spec.package, {}), sets.get(spec.package, {}))
        problems += wrong
        inputs, wrong = _inputs(spec, pipeline, settings, request.overwrite, pending)
        problems += wrong
        settings |= inputs
        config, wrong = build_leniently(spec.config_class, settings, where=spec.package)
        problems += wrong
        problems += settings_problems(config, spec.package, world_size=placement.world_size, gpus=placement.gpus)
        if not pending:
            problems += data_problems(config)
        finished = not request.overwrite and _state(config, spec, problems)
        stages.append(StagePlan(spec, config, {**sources, **dict.fromkeys(inputs, "train.py")}, finished))
    problems += _unlike(stages)
    prepare, evaluate = (_section(key, recipe, sets) for key in ("prepare", "evaluate"))
    if prepare is not None:
        problems += _module_problems(prepare)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    base = pipeline.actor_model or next((getattr(s.config, "model", "") for s in stages if s.spec.number == 1), "")
    return Plan(pipeline, given, name, notes, placement, stages, prepare, evaluate, base)


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _choose_recipe(request: Request, notes: list[str]) -> str | None:
    """The recipe asked for; else the demo where no model and no data are named; else the one named as the actor."""
    if request.recipe is not None:
        return None if request.recipe == "none" else request.recipe
    output = Path(request.flags.get("output_dir", PipelineConfig.model_fields["output_dir"].default))
    before = output / PIPELINE_NAME
    if before.exists() and not request.overwrite:  # the run that is resumed knows
        known = read_yaml(before).get("run", {}).get("recipe")
        if known:
            notes.append(f"recipe {known}, as this output folder was begun with")
        return known
    if not any(request.flags.get(key) for key in _MODEL_FLAGS) and not any("model=" in item for item in request.sets):
        notes.append("no model and no data are named: this is the demo (--recipe demo)")
        return "demo"
    alias = str(request.flags.get("actor_model", "")).lower()
    if alias in recipe_names():
        notes.append(f"recipe {alias}, which is made for this actor; --recipe none takes the built-in defaults")
        return alias
    return None


def _read_recipe(name: str | None, specs: Iterable[StageSpec], problems: list[str]) -> dict[str, Any]:
    if name is None:
        return {}
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
    if not path.exists():
        names = recipe_names()
        problems.append(
            f"--recipe {name}: no such file, and no recipe of this name{nearest(name, names)} "
            f"(there are {', '.join(names)})"
        )
        return {}
    known = ["pipeline", "prepare", "evaluate", "run", *(spec.package for spec in specs)]
    found: dict[str, Any] = {}
    try:
        values = read_yaml(path)
    except UserError as error:
        problems += error.problems
        return {}
    for section, settings in values.items():
        if section not in known:
            problems.append(f"{path}: '{section}' is no section of a recipe{nearest(str(section), known)}")
        elif settings is not None and not isinstance(settings, dict):
            problems.append(f"{path}: section '{section}' holds no settings but {settings!r}")
        elif settings is not None:
            found[section] = settings
    return found


def _section(key: str, recipe: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any] | None:
    return {**recipe[key], **sets.get(key, {})} if key in recipe else None


def _module_problems(prepare: Mapping[str, Any]) -> list[str]:
    module = str(prepare.get("module", ""))
    try:
        found = bool(module) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    return (
        [] if found else [f"prepare.module={module!r}: there is no such Python module; give one such as scripts.demo"]
    )


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


def _inputs(
    spec: StageSpec, pipeline: PipelineConfig, settings: Mapping[str, Any], overwrite: bool, pending: bool
) -> tuple[dict[str, Any], list[str]]:
    """The folder of a stage and the models that it starts from, checked where they exist already."""
    output = pipeline.output_dir
    inputs: dict[str, Any] = {"output_dir": output / spec.package}
    if spec.number == 1:
        return inputs, [] if pending else check_model(settings.get("model") or "", flag="--actor-model")
    if spec.number == 2:
        inputs["model"] = settings.get("model") or pipeline.reward_model or pipeline.actor_model or ""
        flag = "--reward-model" if pipeline.reward_model else "--actor-model"
        return inputs, [] if pending else check_model(inputs["model"], flag=flag)
    problems = []
    inputs["actor_model"] = pipeline.sft_model or str(output / "step1_sft" / "model")
    inputs["reward_model"] = str(output / "step2_reward" / "model")
    if pipeline.sft_model:
        inputs["actor_model"] = resolve(pipeline.sft_model)
        problems += check_model(pipeline.sft_model, flag="--sft-model")
    elif 1 not in pipeline.selected and not _finished(output / "step1_sft"):
        problems.append(
            f"stage 3 needs an actor from stage 1, and {output / 'step1_sft'} holds no finished one; "
            "add stage 1 to --stages, or give --sft-model"
        )
    if 2 not in pipeline.selected:
        here = _finished(output / "step2_reward")
        if pipeline.reward_model and (not here or _is_reward_model(pipeline.reward_model)):
            inputs["reward_model"] = resolve(pipeline.reward_model)
            problems += check_model(pipeline.reward_model, flag="--reward-model", kind="reward")
        elif not here:
            problems.append(
                f"stage 3 needs a reward model, and {output / 'step2_reward'} holds no finished one; "
                "add stage 2 to --stages, or give --reward-model a trained one"
            )
    return inputs, problems


def _is_reward_model(name: str) -> bool:
    try:
        return Path(resolve(name)).is_dir() and has_scalar_head(read_config(name))
    except UserError:
        return False


def _finished(folder: Path) -> bool:
    return read_result(folder) is not None


def _state(config: RunSettings, spec: StageSpec, problems: list[str]) -> bool:
    """Whether the stage is finished in its folder; a run there with other settings is a problem."""
    try:
        refuse_differences(config.output_dir / CONFIG_NAME, config, spec.package)
        return _finished(config.output_dir)
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
