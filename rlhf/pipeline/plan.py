"""From recipe and flags to the stages' configs; everything is checked before a rank is started.

Each source overrides those before it: default, what `prepare` made, the recipe's `pipeline:`, the recipe's section of
the stage, flag, `--set`. All problems are reported at once. Imports no torch; the stages are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.config import build_leniently, flag_of, must_be_alike, parse_sets
from rlhf.errors import ConfigError, UserError
from rlhf.files import folder_problems
from rlhf.hardware import Machine
from rlhf.memory.cards import Card, described, this_card
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.methods import of_method
from rlhf.pipeline.placed import Placement
from rlhf.pipeline.placement import place
from rlhf.pipeline.preparation import prepared_before
from rlhf.pipeline.recipes import Request, module_problems, read_recipe
from rlhf.pipeline.stage_inputs import Inputs, left_out, models_made, runs, stage_inputs, unused_flags
from rlhf.stage_config import RunSettings
from rlhf.stages.folder import refuse_differences
from rlhf.stages.problems import input_problems, settings_problems
from rlhf.stages.result import CONFIG_NAME, is_finished
from rlhf.stages.spec import ModelConfig, Models, StageSpec

_ELSEWHERE = "read_elsewhere"  # the setting of stages that read data


@dataclass
class StagePlan:
    """One stage to run. `sources` gives the source of every setting that was given, `models` the config.json of each
    model that it starts from, as far as they are known."""

    spec: StageSpec
    config: RunSettings
    sources: dict[str, str]
    finished: bool
    models: Models = field(default_factory=dict)

    def model(self, setting: str) -> str:
        """The model that one of the stage's settings names."""
        return str(getattr(self.config, setting))


@dataclass
class Plan:
    """Everything that a run will do. `specs` are all stages of the method, `stages` the selected ones. `card` is
    the GPU that each rank has; None on CPUs, and where the machine does not tell."""

    specs: tuple[StageSpec, ...]
    pipeline: PipelineConfig
    given: dict[str, str]  # pipeline settings that were given, and from where
    recipe: str | None
    placement: Placement
    machine: Machine
    card: Card | None
    stages: list[StagePlan]
    prepare: dict[str, Any] | None
    evaluate: dict[str, Any] | None
    base_model: str
    left_out: list[StageSpec] = field(default_factory=list)  # of a run of all stages: nothing needs what they make


def make_plan(
    specs: Sequence[StageSpec],
    request: Request,
    *,
    evaluation_problems: Callable[..., list[str]] = lambda settings, pending: [],
    prepared: Mapping[str, Any] | None = None,
) -> Plan:
    """Raises ConfigError with all problems. `prepared`: the result of the recipe's preparation, once it has run. Before
    that, models and data that it will make are not reported as missing."""
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
    pending = prepare is not None and prepared is None
    brought = {key: value for key, value in (prepared or {}).items() if key != "evaluate"}
    layers = {"prepare": brought, "recipe": recipe.get("pipeline", {}), "flag": dict(request.flags)}
    values = {key: value for layer in layers.values() for key, value in layer.items()}
    given = {key: source for source, layer in layers.items() for key in layer}
    pipeline, wrong = build_leniently(PipelineConfig, values, where="pipeline")
    problems += [_as_flag(problem, request.flags) for problem in wrong]
    elsewhere = request.gpu_memory is not None
    placement, wrong = place(pipeline, described=elsewhere)
    machine = machine_of(placement, described=elsewhere)
    specs, not_of_method = of_method(specs, pipeline, request.flags, sets)
    problems += not_of_method
    problems += [*pipeline.problems(machine), *wrong, *_unknown_stages(pipeline, specs)]
    problems += folder_problems(pipeline.output_dir)
    all_values = {
        spec.package: _stage_values(
            spec, layers, recipe.get(spec.package, {}), sets.get(spec.package, {}), method=pipeline.method
        )
        for spec in specs
    }
    idle = left_out(specs, pipeline, {package: values for package, (values, _, _) in all_values.items()})
    if idle:
        running = [str(spec.number) for spec in specs if spec not in idle]
        pipeline = pipeline.model_copy(update={"stages": ",".join(running)})

    stages: list[StagePlan] = []
    all_inputs: list[Inputs] = []
    made: dict[str, ModelConfig] = {}
    for spec in (spec for spec in specs if runs(spec, pipeline)):
        settings, sources, wrong = all_values[spec.package]
        problems += wrong
        inputs = stage_inputs(spec, specs, pipeline, settings, made)
        problems += inputs.problems
        settings |= inputs.settings
        config, wrong = build_leniently(spec.config_class, settings, where=spec.package)
        typed = {"method"} & request.flags.keys() and {n for each in spec.method_settings.values() for n in each}
        if outvoted := _outvoted(config, sources, typed or ()):
            settings, sources = ({n: v for n, v in d.items() if n not in outvoted} for d in (settings, sources))
            config, wrong = build_leniently(spec.config_class, settings, where=spec.package)
        problems += [*wrong, *settings_problems(spec, config, machine)]
        finished = not request.overwrite and not pending and _state(config, spec, [] if request.fit else problems)
        models: Models = {}
        if not pending:
            models, wrong = inputs.look(trust_remote_code=config.trust_remote_code, facts=elsewhere)
            made |= models_made(spec, config, models, finished=finished)
            if not finished:
                problems += [*wrong, *input_problems(spec, config, models, machine)]
        sources |= dict.fromkeys(inputs.settings, "train.py")
        stages.append(StagePlan(spec, config, sources, finished, models))
        all_inputs.append(inputs)
    problems += [*unused_flags(specs, all_inputs, pipeline), *_unlike(stages)]
    if evaluate is not None:
        evaluate = {**(prepared or {}).get("evaluate", {}), **evaluate}
        problems += evaluation_problems(evaluate, pending=pending)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    _tell_of_columns(stages)
    base = pipeline.actor_model or _base_model(all_inputs)
    card = _card(request, placement) if machine.gpus else None
    return Plan(
        tuple(specs), pipeline, given, request.recipe, placement, machine, card, stages, prepare, evaluate, base, idle
    )


def left_out_lines(plan: Plan) -> list[str]:
    """What a user is told of the stages that a run leaves out."""
    lines = [f"[{spec.number}] {spec.package}: left out, no other stage needs its model" for spec in plan.left_out]
    return lines + _unused_prompts(plan)


def _unused_prompts(plan: Plan) -> list[str]:
    """A line where prompts are kept for stages before the last one that neither run nor are finished in the folder."""
    last = next((stage for stage in reversed(plan.stages) if hasattr(stage.config, "shares")), None)
    if last is None:
        return []
    shares: Sequence[float] = last.config.shares  # type: ignore[attr-defined]
    there = [stage.spec.number for stage in plan.stages]
    there += [s.number for s in plan.specs if is_finished(plan.pipeline.output_dir / s.package)]
    idle = [n for n, share in enumerate(shares, start=1) if share and n < last.spec.number and n not in there]
    if not idle:
        return []
    used = ",".join("0" if n in idle else f"{share:g}" for n, share in enumerate(shares, start=1))
    kept = sum(shares[n - 1] for n in idle) / sum(shares)
    return [
        f"{kept:.0%} of the prompts are kept for stage{'s' * (len(idle) > 1)} {' and '.join(map(str, idle))}, which "
        f"the run does not have; --data-split {used} uses them too"
    ]


def machine_of(placement: Placement, *, described: bool = False) -> Machine:
    """The hardware of a run, where its placement says."""
    return Machine(
        ranks=placement.ranks,
        nodes=placement.nodes,
        gpus=placement.gpus,
        bf16=placement.bf16,
        described=described,
    )


def _card(request: Request, placement: Placement) -> Card | None:
    """The GPU of each rank: the one that is described, that of the hosts, or this machine's."""
    if request.gpu_memory is not None:
        return described(request.gpu_memory, request.gpu_tflops)
    if placement.hosts:
        found = placement.card
        return replace(found, tflops=request.gpu_tflops or found.tflops) if found else None
    return this_card(request.gpu_tflops)


def _base_model(inputs: Sequence[Inputs]) -> str:
    """The language model that a run starts from: the first that a stage is given and no stage makes."""
    return next((name for each in inputs for model, (name, _) in each.named.items() if model.kind == "language"), "")


def _unknown_stages(pipeline: PipelineConfig, specs: Sequence[StageSpec]) -> list[str]:
    numbers = [spec.number for spec in specs]
    unknown = [number for number in pipeline.selected if number not in numbers]
    listed = ", ".join(map(str, numbers))
    return [f"--stages {pipeline.stages}: there is no stage {number}; the stages are {listed}" for number in unknown]


def _section(key: str, recipe: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any] | None:
    return {**recipe[key], **sets.get(key, {})} if key in recipe else None


# --- settings of a stage ----------------------------------------------------------------------------------------------


def _stage_values(
    spec: StageSpec,
    layers: Mapping[str, Mapping[str, Any]],
    section: Mapping[str, Any],
    sets: Mapping[str, Any],
    *,
    method: str | None,
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """A stage's settings from all layers, the source of each, and the problems."""
    problems = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    spread = {source: _spread(spec, layer) for source, layer in layers.items()}
    for name, value in spread["flag"].items():
        if name in sets and sets[name] != value and name not in spec.managed:
            flag = flag_of(spec.config_class, name).replace("_", "-")
            given = f"--set {spec.package}.{name}={sets[name]}"
            problems.append(f"--{flag} {value} and {given} disagree; drop one of them")
    for name, way in spec.managed.items():
        if name in sets or name in section:
            problems.append(f"{spec.package}.{name} is set by train.py; {way}")
    chosen = spec.method_settings.get(method or "", {})
    problems += [
        f"--method {method} and --set {spec.package}.{name}={sets[name]} disagree; drop one of them"
        for name, value in chosen.items()
        if sets.get(name, value) != value
    ]
    ordered = [("prepare", spread["prepare"]), ("recipe", spread["recipe"]), ("recipe", section)]
    for source, layer in [*ordered, ("--method", chosen), ("flag", spread["flag"]), ("--set", sets)]:
        kept = {name: value for name, value in layer.items() if name not in spec.managed}
        values |= kept
        sources |= dict.fromkeys(kept, source)
    return values, sources, problems


def _outvoted(config: RunSettings, sources: Mapping[str, str], by_method: Collection[str]) -> set[str]:
    """Settings of a recipe that have no effect beside what a flag or --set chose, or --method, which chooses those
    `by_method`; the same, typed, is a problem."""
    typed = ("--method", "flag", "--set")
    chosen = {*by_method, *(name for name, source in sources.items() if source in typed)}
    return {n for n, by in config.unread.items() if sources.get(n, "flag") not in typed and by in chosen}


def _spread(spec: StageSpec, layer: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage that pipeline settings set, with their values."""
    flags = {name: flag_of(spec.config_class, name) for name in spec.config_class.model_fields}
    return {
        name: layer[flag]
        for name, flag in flags.items()
        if flag in PipelineConfig.model_fields and layer.get(flag) is not None
    }


def _as_flag(problem: str, flags: Mapping[str, Any]) -> str:
    """`pipeline.num_gpus=-1 is …` as the user typed it, if it was typed: `--num-gpus -1 is …`."""
    name = problem.partition("=")[0].removeprefix("pipeline.")
    return f"--{name.replace('_', '-')} {problem.partition('=')[2]}" if name in flags else problem


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
    """Whether the stage is finished in its folder; other settings there are a problem."""
    try:
        refuse_differences(config.output_dir / CONFIG_NAME, config, spec.package)
        return is_finished(config.output_dir)
    except UserError as error:
        problems += error.problems
        return False


def _tell_of_columns(stages: Sequence[StagePlan]) -> None:
    """Tell each stage which columns of the data others read, so that it does not call them unused."""
    read = {stage.spec.package: stage.spec.columns(stage.config) for stage in stages}
    for stage in stages:
        others = sorted({c for package, found in read.items() for c in found if package != stage.spec.package})
        typed = stage.sources.get(_ELSEWHERE) in ("flag", "--set")  # a recipe may be the record of another run
        if others and _ELSEWHERE in type(stage.config).model_fields and not typed:
            stage.config = stage.config.model_copy(update={_ELSEWHERE: others})
            stage.sources[_ELSEWHERE] = "train.py"


def _unlike(stages: Sequence[StagePlan]) -> list[str]:
    """A line for each setting on which the stages of a run must agree and do not."""
    found = []
    for name in dict.fromkeys(name for stage in stages for name in must_be_alike(stage.spec.config_class)):
        values = {s.spec.package: getattr(s.config, name) for s in stages if name in type(s.config).model_fields}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{package}.{name}={value}" for package, value in values.items())
            found.append(f"{shown}: all stages must split the data in the same way, or a prompt reaches two of them")
    return found
