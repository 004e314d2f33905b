"""From a pretrained language model to a chat model: supervised fine-tuning, a reward model, PPO.

    python train.py                                                       the embedded demo
    python train.py --actor-model opt-13b --reward-model opt-350m --data-path Dahoas/rm-static --num-gpus 8

Puts recipe and flags together, checks everything, starts each stage and follows it. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from rlhf.command import Command
from rlhf.config import given, options
from rlhf.console import say
from rlhf.errors import EXIT_DONE
from rlhf.pipeline.config import HELP_GROUPS, PipelineConfig
from rlhf.pipeline.plan import Plan, make_plan
from rlhf.pipeline.plan_text import continue_command, show_plan
from rlhf.pipeline.recipes import Request, StageSpec, choose_recipe, recipe_names
from step1_sft.config import SFTConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig

STAGES = (
    StageSpec(1, "step1_sft", SFTConfig),
    StageSpec(2, "step2_reward", RewardConfig),
    StageSpec(3, "step3_ppo", PPOConfig),
)
HELP = """From a pretrained language model to a chat model: supervised fine-tuning, a reward model, PPO.

Without arguments the embedded demo runs: a small model, made on the spot, in minutes on a CPU. Running the same
command again goes on where a run stopped.

\b
  python train.py
  python train.py --actor-model opt-13b --reward-model opt-350m --num-gpus 8
"""


def data_problems(config: Any) -> list[str]:
    """What is wrong with the data of a stage, as far as can be told without torch."""
    from data.preflight import problems  # brings numpy, which --help need not wait for

    stage = next(spec.number for spec in STAGES if spec.config_class is type(config))
    return problems(config, stage=stage)


def evaluation_problems(settings: Mapping[str, Any], *, pending: bool) -> list[str]:
    """What is wrong with a recipe's `evaluate:` section."""
    from rlhf.pipeline.evaluation import evaluation_problems as found

    return found(settings, pending=pending)


@click.command("train.py", cls=Command, groups=HELP_GROUPS, help=HELP, context_settings={"max_content_width": 110})
@options(PipelineConfig)
@click.option("--recipe", help=f"settings of a file, or of one of: {', '.join(recipe_names())}; none is the defaults")
@click.option("--set", "sets", multiple=True, metavar="STAGE.FIELD=VALUE", help="any setting of a stage, repeatable")
@click.option("--overwrite", is_flag=True, help="run the stages anew in an output folder that has a run")
@click.option("--dry-run", is_flag=True, help="print the plan and what every option resolves to; start nothing")
def main(
    recipe: str | None,
    sets: tuple[str, ...],
    overwrite: bool,
    dry_run: bool,
    **flags: Any,
) -> int:
    request = Request(flags=given(flags), sets=sets, recipe=recipe, overwrite=overwrite)
    name, why = choose_recipe(request)
    if why:
        say(why)
    request = replace(request, recipe=name)

    def plan_with(prepared: Mapping[str, Any] | None = None) -> Plan:
        return make_plan(
            STAGES,
            request,
            data_problems=data_problems,
            evaluation_problems=evaluation_problems,
            prepared=prepared,
        )

    plan = plan_with()
    if dry_run:
        show_plan(plan)
        return EXIT_DONE
    from rlhf.pipeline.run import run_pipeline

    again = continue_command(sys.argv[1:])
    return run_pipeline(plan, replan=plan_with, overwrite=overwrite, again=again)


if __name__ == "__main__":
    main()
