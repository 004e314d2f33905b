"""python -m scripts.nightly_kill: kill runs at random moments, resume them, and check that the results are the same.

One run is not stopped. Each other run is killed (SIGKILL, as in a power cut) once in every stage at a random moment and
started again by the same command. Then its metrics, rollouts and models are compared with those of the first run, bit
by bit. By default ten runs of the demo: about an hour on two cores; `-- --method dpo` is faster.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from rlhf import console
from rlhf.command import Command, UserPath
from rlhf.errors import EXIT_DONE, EXIT_FAILURE, ConfigError, RLHFError
from rlhf.files import claim_folder, empty_folder
from rlhf.json_lines import read_json_lines
from rlhf.metrics import FILE_NAME
from rlhf.pipeline.launch import ROOT
from rlhf.stages.result import DONE_NAME, read_result
from scripts.method_stages import METHODS, packages_of

_TIMED = ("time/", "perf/")


class NotAsPlanned(RLHFError):
    """train.py did not end as it should; the text holds the end of its output."""


def train(
    arguments: Sequence[str], output: Path, *, stop: Callable[[], bool] | None = None, number: int = 9
) -> tuple[int, str]:
    """Run train.py into `output`; when `stop()` is true it gets the signal `number`. Its exit code and its output."""
    words = [sys.executable, str(ROOT / "train.py"), "--output-dir", str(output), *arguments]
    output.parent.mkdir(parents=True, exist_ok=True)
    said = output.parent / f"{output.name}.txt"
    with said.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if stop is not None and stop():
                    process.send_signal(number)
                    process.wait(timeout=120)
                time.sleep(0.002 if stop is not None else 0.1)
        finally:
            process.kill()
            process.wait()
    return process.returncode, said.read_bytes()[begin:].decode("utf-8", errors="replace")


def last_step(stage: Path) -> int:
    """The step of the last whole row of a stage's metrics; -1 when there is none."""
    try:
        return int(json.loads((stage / FILE_NAME).read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2])["step"])
    except (OSError, ValueError, KeyError):
        return -1


def after_step(stage: Path, step: int) -> Callable[[], bool]:
    """Whether the stage has written the metrics of `step`."""
    return lambda: last_step(stage) >= step


def after_seconds(stage: Path, seconds: float) -> Callable[[], bool]:
    """Whether `seconds` have passed since the stage began."""
    began: list[float] = []

    def passed() -> bool:
        if not began and (stage / "config.yaml").exists():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] >= seconds

    return passed


def later(stop: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Whether `seconds` have passed since `stop()` became true."""
    reached: list[float] = []

    def passed() -> bool:
        if not reached and stop():
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] >= seconds

    return passed


def moment(chance: random.Random, whole: Path, stage: Path) -> tuple[Callable[[], bool], str]:
    """A random moment of a stage, and its name. One in four is at any time of the stage, loading included; the others
    are within a second of a random step: between two checkpoints, or while a checkpoint or a model is written."""
    seconds, steps = _seconds(whole), last_step(whole)
    if chance.random() < 0.25:
        drawn = chance.uniform(0.0, seconds)
        return after_seconds(stage, drawn), f"{drawn:.1f} s of {seconds:.1f}"
    step, delay = chance.randint(0, steps), chance.uniform(0.0, 1.0)
    return later(after_step(stage, step), delay), f"step {step} of {steps}, {delay:.2f} s later"


def differences(whole: Path, other: Path) -> Iterator[str]:
    """How a stage's metrics (except times), rollouts and models differ from those of an uninterrupted run."""
    left, right = _metrics(whole), _metrics(other)
    if len(left) != len(right):
        yield f"{len(right)} rows of metrics instead of {len(left)}"
    for number, (expected, found) in enumerate(zip(left, right, strict=False), start=1):
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        if names:
            yield f"row {number} of the metrics: {', '.join(names)}"
            break
    expected_files, found_files = _files(whole), _files(other)
    for name in sorted(expected_files.keys() | found_files.keys()):
        if name not in found_files or name not in expected_files:
            yield f"{name} is in one of them only"
        elif expected_files[name].read_bytes() != found_files[name].read_bytes():
            yield f"{name} has other content"


def _metrics(stage: Path) -> list[dict[str, float]]:
    rows = [line.value() for line in read_json_lines(stage / FILE_NAME)]
    return [{name: value for name, value in row.items() if not name.startswith(_TIMED)} for row in rows]


def _files(stage: Path) -> dict[str, Path]:
    found = [*stage.rglob("*.safetensors"), *(stage / "rollouts").glob("*.jsonl")]
    return {str(path.relative_to(stage)): path for path in found if "checkpoints" not in path.parts}


@click.command("python -m scripts.nightly_kill", cls=Command)
@click.option("--times", default=10, show_default=True, help="number of runs that are killed, once in each stage")
@click.option("--seed", default=0, show_default=True, help="seed of the random moments")
@click.option(
    "--output-dir",
    type=UserPath(),
    default=Path("output-nightly"),
    show_default=True,
    help="folder of all runs; it is emptied first",
)
@click.argument("arguments", nargs=-1)
def main(times: int, seed: int, output_dir: Path, arguments: Sequence[str]) -> int:
    """Kill runs at random moments, resume them, and check that metrics, rollouts and models are the same, bit by bit.

    By default ten runs of the demo: about an hour on two cores. ARGUMENTS, after `--`, are options for train.py that
    replace the demo's settings.
    """
    claim_folder(output_dir)
    empty_folder(output_dir)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same threads, the same sums
    chance = random.Random(seed)
    whole = output_dir / "whole"
    _finish(arguments, whole)
    everything = dict.fromkeys(package for method in METHODS for package in packages_of(method))
    stages = [stage for stage in everything if (whole / stage).exists()]
    rows: list[list[object]] = []
    failed = 0
    for number in range(1, times + 1):
        run = output_dir / f"killed-{number:02}"
        for stage in stages:
            stop, when = moment(chance, whole / stage, run / stage)
            code, said = train(arguments, run, stop=stop)
            if code not in (-9, EXIT_DONE):
                raise NotAsPlanned(f"{run.name}, {stage}: exit code {code}\n{said[-2000:]}")
            where = "it was already finished" if code == EXIT_DONE else _where(run / stage)
            rows.append([run.name, stage, when, where])
        _finish(arguments, run)
        found = [f"{stage}: {text}" for stage in stages for text in differences(whole / stage, run / stage)]
        failed += bool(found)
        rows.append([run.name, "whole run", "resumed to its end", "; ".join(found) or "identical"])
        console.say(f"{run.name}: {rows[-1][-1]}")
    console.table(f"{times} runs, killed once in each stage", ["run", "stage", "moment", "found"], rows)
    return EXIT_FAILURE if failed else EXIT_DONE


def _finish(arguments: Sequence[str], run: Path) -> None:
    code, said = train(arguments, run)
    if code != EXIT_DONE:
        raise NotAsPlanned(f"{run.name}: exit code {code}\n{said[-2000:]}")


def _seconds(stage: Path) -> float:
    result = read_result(stage)
    if result is None:
        raise ConfigError(f"{stage} has no {DONE_NAME}")
    return result.seconds


def _where(stage: Path) -> str:
    step = last_step(stage)
    checkpoints = sorted(path.name for path in (stage / "checkpoints").glob("step-*"))
    held = f"newest checkpoint {checkpoints[-1]}" if checkpoints else "no checkpoint yet"
    if (stage / DONE_NAME).exists():
        return "killed when it had just finished"
    return f"killed before its first metrics, {held}" if step < 0 else f"killed after step {step}, {held}"


if __name__ == "__main__":
    main()
