"""The command that takes stages as values and runs them as a pipeline: `train.py` is this with its list of stages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

import rlhf
from rlhf.command import Command
from rlhf.config import given, groups_of, options
from rlhf.console import say
from rlhf.errors import EXIT_DONE
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.plan import Plan, make_plan
from rlhf.pipeline.plan_text import continue_command, show_plan
from rlhf.pipeline.recipes import Request, choose_recipe, recipe_names
from rlhf.stages.spec import StageSpec


def evaluation_problems(settings: Mapping[str, Any], *, pending: bool) -> list[str]:
    """What is wrong with a recipe's `evaluate:` section."""
    from rlhf.pipeline.evaluation import evaluation_problems as found  # imports what --help does not need

    return found(settings, pending=pending)


def pipeline_command(name: str, specs: Sequence[StageSpec], *, help: str) -> click.Command:
    """The command `name` that plans and runs `specs`, in their order."""
    groups = groups_of(PipelineConfig, Run=("recipe", "overwrite", "dry_run"), Training=("sets",))

    @click.command(name, cls=Command, groups=groups, help=help)
    @options(PipelineConfig)
    @click.option("--recipe", help=f"file of settings, or one of: {', '.join(recipe_names())}; none: built-in defaults")
    @click.option(
        "--set", "sets", multiple=True, metavar="STAGE.FIELD=VALUE", help="any setting of a stage; repeatable"
    )
    @click.option("--overwrite", is_flag=True, help="new start in an output folder that already holds a run")
    @click.option("--dry-run", is_flag=True, help="plan and value of every option, printed; nothing is started")
    @click.version_option(rlhf.__version__, prog_name="rlhf-pipeline", help="version of this project")
    def command(recipe: str | None, sets: tuple[str, ...], overwrite: bool, dry_run: bool, **flags: Any) -> int:
        request = Request(flags=given(flags), sets=sets, recipe=recipe, overwrite=overwrite)
        chosen, why = choose_recipe(request)
        if why:
            say(why)
        request = replace(request, recipe=chosen)

        def plan_with(prepared: Mapping[str, Any] | None = None) -> Plan:
            return make_plan(specs, request, evaluation_problems=evaluation_problems, prepared=prepared)

        plan = plan_with()
        if dry_run:
            show_plan(plan)
            return EXIT_DONE
        from rlhf.pipeline.run import run_pipeline

        again = continue_command(sys.argv[1:])
        return run_pipeline(plan, replan=plan_with, overwrite=overwrite, again=again)

    return command
