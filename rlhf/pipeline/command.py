"""The command that takes stages as values and runs them as a pipeline: `train.py` is this with its list of stages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

import rlhf
from rlhf.command import Command
from rlhf.config import given, groups_of, options
from rlhf.console import say, warn
from rlhf.errors import EXIT_DONE, ConfigError
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.gpu_state import gpu_warnings
from rlhf.pipeline.memory import fitting_sets, memory_problems, set_values, warn_of_main_memory
from rlhf.pipeline.plan import Plan, make_plan
from rlhf.pipeline.plan_text import continue_command, show_plan
from rlhf.pipeline.recipes import Request, choose_recipe, recipe_names
from rlhf.stages.spec import StageSpec


def evaluation_problems(settings: Mapping[str, Any], *, pending: bool) -> list[str]:
    """What is wrong with a recipe's `evaluate:` section."""
    from rlhf.pipeline.evaluation import evaluation_problems as found  # imports what --help does not need

    return found(settings, pending=pending)


_ASKED = ("gpu_memory", "gpu_tflops", "peak_share", "fit")


def pipeline_command(name: str, specs: Sequence[StageSpec], *, help: str) -> click.Command:
    """The command `name` that plans and runs `specs`, in their order."""
    groups = groups_of(PipelineConfig, Run=("recipe", "overwrite", "dry_run"), Training=("sets",), Machine=_ASKED)

    @click.command(name, cls=Command, groups=groups, help=help)
    @options(PipelineConfig)
    @click.option("--recipe", help=f"file of settings, or one of: {', '.join(recipe_names())}; none: built-in defaults")
    @click.option(
        "--set", "sets", multiple=True, metavar="STAGE.FIELD=VALUE", help="any setting of a stage; repeatable"
    )
    @click.option("--overwrite", is_flag=True, help="new start in an output folder that already holds a run")
    @click.option("--dry-run", is_flag=True, help="plan and value of every option, printed; nothing is started")
    @click.option(
        "--gpu-memory",
        type=click.FloatRange(min=1),
        help="GB of each GPU of a machine that is not this one; for --dry-run",
    )
    @click.option(
        "--gpu-tflops",
        type=click.FloatRange(min=0.1),
        help="10¹² operations a second of each GPU, for the time in the plan",
    )
    @click.option(
        "--peak-share", type=click.FloatRange(0.01, 1), help="share of the GPUs' peak that is reached; default: 0.4"
    )
    @click.option("--fit", is_flag=True, help="settings changed until each stage fits the GPUs (docs/memory.md)")
    @click.version_option(rlhf.__version__, prog_name="rlhf-pipeline", help="version of this project")
    def command(
        recipe: str | None,
        sets: tuple[str, ...],
        overwrite: bool,
        dry_run: bool,
        gpu_memory: float | None,
        gpu_tflops: float | None,
        peak_share: float | None,
        fit: bool,
        **flags: Any,
    ) -> int:
        _refuse_elsewhere(flags, dry_run, gpu_memory=gpu_memory, gpu_tflops=gpu_tflops, peak_share=peak_share)
        request = Request(given(flags), sets, recipe, overwrite, gpu_memory, gpu_tflops, fit)
        chosen, why = choose_recipe(request)
        if why:
            say(why)
        request = replace(request, recipe=chosen)

        def plan_with(prepared: Mapping[str, Any] | None = None) -> Plan:
            asked = request
            if fit:  # the first plan only says what does not fit
                plan = make_plan(specs, request, evaluation_problems=evaluation_problems, prepared=prepared)
                asked = replace(request, fit=False, sets=(*request.sets, *_fitting(plan)))
            return make_plan(specs, asked, evaluation_problems=evaluation_problems, prepared=prepared)

        plan = plan_with()
        for line in gpu_warnings(plan.placement):
            warn(line)
        if dry_run:
            show_plan(plan, peak_share=peak_share)
        if not plan.pipeline.force and (problems := memory_problems(plan)):
            raise ConfigError(*problems)
        if dry_run:
            return EXIT_DONE
        warn_of_main_memory(plan)
        from rlhf.pipeline.run import run_pipeline

        again = continue_command(sys.argv[1:])
        return run_pipeline(plan, replan=plan_with, overwrite=overwrite, again=again)

    return command


def _refuse_elsewhere(flags: Mapping[str, Any], dry_run: bool, **asked: float | None) -> None:
    """What only a plan answers; a machine that is not this one can be planned for, and nothing else."""
    if asked["gpu_memory"] is not None and not dry_run:
        raise ConfigError("--gpu-memory describes a machine that is not this one; add --dry-run, or leave it out")
    if asked["gpu_memory"] is not None and flags.get("num_gpus") == 0:
        raise ConfigError("--gpu-memory describes GPUs, and --num-gpus 0 wants none; drop one of them")
    idle = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None and not dry_run]
    if idle:
        raise ConfigError(*(f"{flag} is for the time in a plan: it has no effect without --dry-run" for flag in idle))


def _fitting(plan: Plan) -> Iterator[str]:
    """The settings, as for --set, that make the stages of a plan fit; each is said."""
    for need, changes in fitting_sets(plan):
        values = set_values(need.stage, changes)
        say(f"--fit: {need.name} needs {need.memory.largest.total / 1e9:.1f} GB a GPU; {', '.join(values)}")
        yield from values
