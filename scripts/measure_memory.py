"""python -m scripts.measure_memory: the plan's memory beside the resident memory of an iteration of PPO on this CPU.

Each line is a process of its own that builds the four roles and runs iterations of stage 3, as `scripts.bench_ppo`
does. Its largest resident size is compared with the largest phase of the plan of the same settings.
`--real-model FOLDER` adds a model of your own. Variants in bf16 run only where the CPU multiplies in it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from rlhf import console
from rlhf.command import Command, UserPath
from rlhf.errors import EXIT_DONE
from rlhf.hardware import Machine
from rlhf.memory.phases import stage_memory
from step3_ppo.spec import SPEC

VARIANTS = ("ours bf16", "ours fp32", "ours reuse bf16")
MB = 1e6


def planned(config: Any, folder: Path, ranks: int) -> float:
    """Bytes of the largest phase of a plan."""
    models = {
        f"{name}_model": json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        for name, part in (("actor", "actor"), ("reward", "reward"))
    }
    machine = Machine(ranks=ranks)
    work = SPEC.workload(config, models, machine)
    assert work is not None
    return stage_memory(work, machine).largest.total


@click.command("measure_memory", cls=Command, help=__doc__)
@click.option("--only", default="", help="part of a model's name: other models are left out")
@click.option("--real-model", type=UserPath(), help="folder of a real model")
@click.option(
    "--variant", "variants", multiple=True, help=f"default: those of {', '.join(VARIANTS)} that suit this CPU"
)
@click.option("--micro-batch-size", default=4, help="rows of one forward pass")
@click.option("--rounds", default=1, help="iterations after the first one")
def main(only: str, real_model: Path | None, variants: tuple[str, ...], micro_batch_size: int, rounds: int) -> int:
    from scripts.bench_common import Setting, Worker, in_turns, served_here
    from scripts.bench_ppo import WORKERS, save_models
    from scripts.bench_ppo_workers import config_of

    rows: list[list[Any]] = []
    for model, length in (("7.3M", 64), ("58M", 128), ("135M", 64), (str(real_model) if real_model else "", 64)):
        if not model or only not in model:
            continue
        with tempfile.TemporaryDirectory(prefix="memory-") as name:
            folder, setting = Path(name), Setting(model, 16, length, length, False)
            save_models(setting, folder)
            for variant in variants or served_here(VARIANTS):
                arguments: dict[str, Any] = {
                    "variant": variant,
                    "setting": vars(setting),
                    "folder": str(folder),
                    "micro_batch_size": micro_batch_size,
                    "threads": 1,
                }
                expected = planned(config_of(arguments, folder), folder, ranks=1)
                found = in_turns([Worker(WORKERS, arguments, threads=1)], rounds)[0]["peak_bytes"]
                console.say(f"{variant}: planned {expected / MB:.0f}, measured {found / MB:.0f} MB")
                rows.append([Path(model).name, variant, expected / MB, found / MB, f"{expected / found - 1:+.1%}"])
    console.table("Largest resident memory of a process, in MB", ["model", "variant", "planned", "measured", ""], rows)
    return EXIT_DONE


if __name__ == "__main__":
    main()
