"""python -m scripts.run_stage RANKS PACKAGE ARGUMENTS...: one stage alone, on several ranks of this machine.

step1_sft.sh, step2_dpo.sh, step2_reward.sh and step3_ppo.sh start it. The ranks end when this process or one of
them ends. Imports no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import deque
from pathlib import Path

import click

from rlhf.command import Command
from rlhf.config import build, read_yaml
from rlhf.console import say
from rlhf.console.replay import Replay
from rlhf.console.text import duration, figure
from rlhf.errors import EXIT_DONE, EXIT_FAILURE, ConfigError
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.launch import RankFailed, launch
from rlhf.pipeline.placement import place
from rlhf.stages.result import read_result

SHOWN = 60  # lines of a failed stage's other output


# Options after NUM_GPUS and PACKAGE belong to the stage, --help included.
@click.command("python -m scripts.run_stage", cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("ranks", metavar="NUM_GPUS", type=click.IntRange(min=1))
@click.argument("package")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(ranks: int, package: str, arguments: tuple[str, ...]) -> int:
    """Run the stage PACKAGE alone, on NUM_GPUS ranks of this machine. ARGUMENTS are the stage's options."""
    placement, problems = place(build(PipelineConfig, {"num_gpus": ranks}, where="pipeline"))
    if problems:
        raise ConfigError(*[problem.replace("--num-gpus ", "NUM_GPUS=") for problem in problems])
    command: click.Command = importlib.import_module(f"{package}.__main__").main
    with command.make_context(package, list(arguments)) as context:  # --help and unknown flags end here
        given = context.params
    settings = read_yaml(given["config"]) if given["config"] else {}
    folder = Path(given["output_dir"] or settings.get("output_dir") or "output")
    if not given["overwrite"] and read_result(folder):
        say(f"{package} is finished in {folder}; --overwrite runs it again")
        return EXIT_DONE
    last: deque[str] = deque(maxlen=SHOWN)
    with open(os.devnull, "w") as nowhere:
        replay = Replay(nowhere)

        def line(text: str) -> None:
            last.append(text)
            replay.line(text)

        try:
            launch(package, arguments, placement, line=line)
        except RankFailed as failure:
            replay.close()
            if failure.exit_code == EXIT_FAILURE:
                print("\n".join(text for text in last if "\x1e" not in text), file=sys.stderr)
            raise
        replay.close()
    result = read_result(folder)
    if result is not None:
        say(f"{package} finished in {duration(result.seconds)}")
        for name, value in [*result.metrics.items(), *result.models.items()]:
            say(f"  {name}: {figure(value)}")
    return EXIT_DONE


if __name__ == "__main__":
    main()
