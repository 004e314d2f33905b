"""python -m scripts.family_table: write docs/models.md, what works with which model family.

Every family of `scripts.family_configs` goes through every column as a tiny random model on the CPU. A cell is "ok"
when the run's figures are those of plain transformers, "refused" when the plan refuses it, with its line under the
table, and "wrong" when the plan lets it through and it fails or a figure is off. A few minutes on two cores.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from rlhf import console, hardware
from rlhf.command import Command
from rlhf.errors import EXIT_DONE, EXIT_FAILURE, ConfigError, nearest
from rlhf.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
PACKAGES = ("transformers", "peft", "torch", "deepspeed")
Row = Mapping[str, Any]  # column → Cell
# An offline CPU, set before anything imports torch. What a user has set stays.
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


@click.command("python -m scripts.family_table", cls=Command)
@click.option("--only", multiple=True, help="a family; repeatable; the table is then shown and the page stays")
@click.option("--jobs", type=click.IntRange(min=1), default=None, help="processes; default: one for each core")
@click.option("--check", is_flag=True, help="comparison with the page that is there; exit code 2 where it differs")
def main(only: tuple[str, ...], jobs: int | None, check: bool) -> int:
    """Try every model family with every stage, and write docs/models.md.

    The exit code is 1 if a cell is wrong.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ["DS_ACCELERATOR"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from scripts.family_bench import COLUMNS, WRONG
    from scripts.family_configs import FAMILIES

    if only and check:
        raise ConfigError("--check compares the whole page, and --only tries a part of it; drop one of them")
    for name in only:
        if name not in FAMILIES:
            raise ConfigError(f"--only {name}: there is no such family{nearest(name, FAMILIES)}")
    table = rows_of(only or tuple(FAMILIES), COLUMNS, jobs=jobs or hardware.cores())
    wrong = [
        f"{name}, {column}: {cell.why}"
        for name, row in table.items()
        for column, cell in row.items()
        if cell.state == WRONG
    ]
    if only:
        states = [[name, *(cell.state for cell in row.values())] for name, row in table.items()]
        console.table("model families", ["family", *COLUMNS], states)
        for name, row in table.items():
            for column, cell in row.items():
                if cell.why and cell.state != WRONG:
                    console.say(f"{name}, {column}: {cell.state}: {cell.why}")
    elif check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page(table):
            raise ConfigError("docs/models.md is not up to date; run python -m scripts.family_table")
    else:
        write_text(PAGE, page(table))
        console.say(f"written: {PAGE.relative_to(ROOT)}")
    for line in wrong:
        console.warn(f"wrong: {line}")
    return EXIT_FAILURE if wrong else EXIT_DONE


def rows_of(names: Sequence[str], columns: Sequence[str], *, jobs: int = 1) -> dict[str, Row]:
    """The cells of families in the order of `columns`."""
    from scripts.family_bench import PARALLEL
    from scripts.family_ranks import parallel_cells

    with tempfile.TemporaryDirectory(prefix="families-") as folder, _environment(RLHF_CACHE=f"{folder}/cache"):
        row = partial(one_row, columns=tuple(columns), shared=Path(folder))
        with console.progress("families", total=len(names), unit="family") as bar:
            done: dict[str, dict[str, Any]] = {}
            for name, cells in zip(names, _each(row, names, jobs), strict=True):
                done[name] = cells
                bar.update(len(done), {})
        left = [name for name in names if PARALLEL in columns and PARALLEL not in done[name]]
        for name, cell in parallel_cells(left, Path(folder)).items():
            done[name][PARALLEL] = cell
    return {name: {column: cells[column] for column in columns} for name, cells in done.items()}


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """While inside, these environment variables. What is done inside to the environment is undone."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _each(row: Any, names: Sequence[str], jobs: int) -> Iterable[dict[str, Any]]:
    if jobs == 1:
        yield from map(row, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(row, names)


def one_row(name: str, *, columns: Sequence[str], shared: Path) -> dict[str, Any]:
    """The cells of one family, but for tensor parallelism. `shared` is a folder for the models of all families."""
    from rlhf.training import distributed
    from scripts.family_bench import Bench
    from scripts.family_checks import cells
    from scripts.family_configs import FAMILIES

    distributed.init(0)
    return cells(Bench(FAMILIES[name], shared), columns)


# --- the page ---------------------------------------------------------------------------------------------------------


def page(table: Mapping[str, Row]) -> str:
    """The text of docs/models.md."""
    from scripts.family_configs import FAMILIES

    columns = list(next(iter(table.values())))
    notes: dict[str, int] = {}
    lines = []
    for name, row in table.items():
        model_type = FAMILIES[name].model_type
        cells = [_shown(cell, model_type, notes) for cell in row.values()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    head = ["| " + " | ".join(["family", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    said = [f"{number}. {text}" for text, number in notes.items()]
    return "\n".join([*_introduction(), "", *head, *lines, "", "## What the plan says", "", *said]) + "\n"


def _introduction() -> list[str]:
    from scripts.family_configs import FAMILIES, SAMPLE

    versions = ", ".join(f"{package} {version(package).partition('+')[0]}" for package in PACKAGES)
    return [
        "# Model families",
        "",
        "Made by `python -m scripts.family_table`: a tiny random model of each family goes through every column on the",
        f"CPU. Edit the script, not this page. With {versions}.",
        "",
        f"The command tries all {len(FAMILIES)} families. The slow test of this page repeats {len(SAMPLE)} of them, in",
        f"which each way through the code occurs: {'; '.join(SAMPLE)}.",
        "",
        "- **ok**: the run ends, and its figures are those of plain transformers: losses and log-probabilities within",
        "  1e-5 nats, logits and scores within 2e-6 of the largest (with adapters or on two ranks 1e-5), or in four",
        "  times the rounding of plain transformers' own float32 on the same weights.",
        "- **refused**: `train.py --dry-run` and the stage say why before anything is trained. The number is that of",
        "  the line below, where MODEL stands for the model's name and TYPE for its type.",
        "- **–**: the column makes no sense for the family.",
        "",
        "| column | what is tried |",
        "|---|---|",
        "| SFT | stage 1: loss of a step and held-out loss before and after it |",
        "| reward | stage 2: scores, margin and loss on held-out pairs from the exported folder |",
        "| PPO | two iterations of stage 3: KL 0 at the start, log-probabilities of the sampler |",
        "| LoRA | the stages with adapters: merged model = base and adapter by peft |",
        "| packing | `packing` in stage 1: the loss of packed rows is that of the rows |",
        "| tensor parallel | `inference_tp_size` 2: logits and greedy responses of the cut copy |",
        "| exact export | the folders of stages 1 and 3 open in transformers as the models that were trained |",
        "| greedy | the sampler alone and in a batch of several lengths: greedy ids of `generate`, log-probabilities |",
    ]


def _shown(cell: Any, model_type: str, notes: dict[str, int]) -> str:
    if not cell.why:
        return cell.state
    text = re.sub(rf"\b{re.escape(model_type)}\b", "TYPE", cell.why)
    return f"{cell.state} {notes.setdefault(text, len(notes) + 1)}"


if __name__ == "__main__":
    main()
