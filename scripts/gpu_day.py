"""python -m scripts.gpu_day: what must be seen on a real GPU, in the order in which it should be seen.

    python -m scripts.gpu_day budget resume smoke     # minutes: nothing crashes, nothing computes nonsense
    python -m scripts.gpu_day memory ppo decode       # planned and measured; an opt-1.3b iteration; time a token
    python -m scripts.gpu_day --tiny                  # all of it, small: tries the script itself, on a CPU too

Each check is a process of its own with a time limit; its output goes to OUTPUT/NAME.log, and a few lines of it to the
terminal. Models are random and made here, so no network is needed. Then: `DS_ACCELERATOR=cuda pytest -m gpu`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from rlhf import console
from rlhf.command import Command, UserPath
from rlhf.errors import EXIT_DONE, EXIT_FAILURE
from scripts.gpu_day_checks import CHECKS
from scripts.gpu_memory import CELLS

# Family of the model, flags of train.py.
SMOKES: list[tuple[str, list[str]]] = [
    ("opt", ["--dtype", "bf16", "--actor-zero-stage", "2", "--critic-zero-stage", "2"]),
    ("llama", ["--dtype", "bf16", "--actor-zero-stage", "3", "--all", "activation_checkpointing=true"]),
    ("qwen2", ["--dtype", "bf16", "--actor-zero-stage", "1", "--set", "step3_ppo.inference_copy=on"]),
    ("llama", ["--dtype", "fp16", "--actor-zero-stage", "2", "--critic-zero-stage", "2"]),
    ("opt", ["--dtype", "fp32", "--actor-zero-stage", "0", "--critic-zero-stage", "0"]),
    ("llama", ["--dtype", "bf16", "--actor-zero-stage", "2", "--all", "offload_optimizer=true"]),
    ("llama", ["--dtype", "bf16", "--actor-zero-stage", "3", "--lora-rank", "4"]),
    ("llama", ["--dtype", "bf16", "--all", "compile=true", "--set", "step3_ppo.inference_compile=true"]),
    ("llama", ["--dtype", "bf16", "--set", "step3_ppo.inference_cuda_graphs=true"]),
    ("qwen2", ["--dtype", "bf16", "--set", "step3_ppo.inference_cuda_graphs=true",
               "--set", "step3_ppo.release_inference_cache=false"]),
    ("llama", ["--method", "dpo", "--dtype", "bf16", "--actor-zero-stage", "2"]),
    ("llama", ["--method", "kto", "--dtype", "bf16", "--actor-zero-stage", "3", "--lora-rank", "4"]),
    ("gpt2", ["--dtype", "bf16", "--actor-zero-stage", "2", "--set", "step3_ppo.reuse_forward=true"]),
]  # fmt: skip
RESUMES = [("2", "bf16"), ("3", "bf16"), ("0", "fp32")]


def cases(name: str, tiny: bool) -> list[list[Any]]:
    """The arguments of each run of a check."""
    sharded = {"activation_checkpointing": True, "actor_zero_stage": 3, "critic_zero_stage": 3}
    all_of = {
        "budget": [[]],
        "resume": [list(case) for case in RESUMES],
        "smoke": [[*case, 2] for case in SMOKES],
        "memory": [[cell.name] for cell in CELLS if cell.ranks == 1],
        "ppo": [[{}, tiny], [sharded, tiny]],
        "decode": [[tiny]],
    }[name]
    return all_of[:1] if tiny else all_of


@click.command("python -m scripts.gpu_day", cls=Command)
@click.argument("checks", nargs=-1, type=click.Choice(list(CHECKS)))
@click.option("--tiny", is_flag=True, help="one small case of each check")
@click.option("--output-dir", type=UserPath(), default=Path("gpu-day"), help="folder of logs and runs")
@click.option("--limit", type=int, default=280, help="seconds that a case may take")
@click.option("--one", hidden=True)
def main(checks: tuple[str, ...], tiny: bool, output_dir: Path, limit: int, one: str | None) -> int:
    """What must be seen on a real GPU: memory, resumes, all engines, seconds."""
    if one:
        CHECKS[checks[0]](output_dir, *json.loads(one))
        sys.stdout.flush()
        os._exit(0)  # the interpreter's own exit can abort inside the communication library
    failed = 0
    for name in checks or CHECKS:
        for number, arguments in enumerate(cases(name, tiny)):
            failed += not show(name, arguments, output_dir.absolute() / f"{name}-{number}", limit)
    return EXIT_FAILURE if failed else EXIT_DONE


def show(name: str, arguments: list[Any], folder: Path, limit: int) -> bool:
    """Run a case and print its lines; whether it ended well."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = [sys.executable, "-m", "scripts.gpu_day", name, "--output-dir", str(folder), "--one", json.dumps(arguments)]
    began = time.monotonic()
    with (folder.parent / f"{folder.name}.log").open("w+", encoding="utf-8", errors="replace") as log:
        try:
            code: int | str = subprocess.run(
                words, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"over {limit} s"
        log.seek(0)
        lines = log.read().splitlines()
    told = [line[2:] for line in lines if line.startswith("| ")] or lines[-1:]
    if code:
        told += [line for line in lines if "rror" in line][-1:]
    console.say(f"{name} {arguments or ''}: exit code {code}, {time.monotonic() - began:.0f} s")
    for line in told:
        console.say(f"    {line[:230]}")
    return code == 0 and not any("BAD" in line for line in told)


if __name__ == "__main__":
    sys.exit(main())
