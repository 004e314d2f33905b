"""python -m step3_ppo.show RUN: page through the rollouts of a run, token by token.

RUN is a run's output folder, stage 3's own folder in it, or one file of rollouts. On a terminal keys turn the pages;
through a pipe every row is printed. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from rlhf.command import Command, UserPath
from rlhf.console import table
from rlhf.console.screen import interactive, screen
from rlhf.console.text import figure
from rlhf.errors import ConfigError, DataError
from step3_ppo.rollout_files import iteration_of, read_rollouts
from step3_ppo.rollout_view import (
    NARROWEST_BESIDE,
    ORDERS,
    SHADES,
    Iteration,
    Row,
    headline,
    legend,
    ordered,
    pairs,
    prompt_text,
    response_text,
    scale_of,
    shades_of,
    strongest,
    summary,
)

KEYS = "space next · b back · + - iteration · s sort · r reverse · c colour · q quit"


@dataclass(frozen=True)
class View:
    """What is shown, and how."""

    iteration: int
    beside: int | None
    order: str
    reverse: bool
    shade: str


@click.command("python -m step3_ppo.show", cls=Command)
@click.argument("run", type=UserPath())
@click.option("--iteration", type=click.IntRange(1), help="number of the iteration; default: the last one kept")
@click.option("--compare", type=click.IntRange(1), help="number of a second iteration, shown beside the first")
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(ORDERS)),
    default="row",
    help="order of the rows; score, KL and length: highest first",
)
@click.option("--reverse", is_flag=True, help="reverse order: lowest first")
@click.option("--colour", "shade", type=click.Choice(list(SHADES)), default="kl", help="figure that colours each token")
@click.option("--rows", type=click.IntRange(1), help="largest number of rows; default: all")
@click.option("--list", "listing", is_flag=True, help="table of the iterations that were kept, and nothing else")
def main(
    run: Path,
    iteration: int | None,
    compare: int | None,
    order: str,
    reverse: bool,
    shade: str,
    rows: int | None,
    listing: bool,
) -> int:
    """Show what the actor answered: each token's KL, advantage or value, each response's score, and how it ended."""
    files = rollout_files(run)
    if listing:
        columns = [(number, summary(load(files, number).rows)) for number in files]
        table(f"iterations in {run}", ["iteration", *columns[0][1]], [[n, *found.values()] for n, found in columns])
        return 0
    view = View(iteration or max(files), compare, order, reverse, shade)
    for wanted in filter(None, (iteration, compare)):
        load(files, wanted)  # reports at once what is missing
    if interactive() and sys.stdin.isatty():
        turn_pages(files, view, limit=rows)
    else:
        print_all(files, view, limit=rows)
    return 0


def rollout_files(run: Path) -> dict[int, Path]:
    """The files of a run by iteration. Raises ConfigError or DataError when there are none."""
    if run.is_file():
        return {iteration_of(run): run}
    if not run.exists():
        raise ConfigError(f"{run} does not exist; give a run's output folder")
    folders = [run, run / "rollouts", run / "step3_ppo" / "rollouts"]
    for folder in folders:
        found = sorted(folder.glob("iteration-*.jsonl"))
        if found:
            return {iteration_of(path): path for path in found}
    raise DataError(
        f"{run} has no rollouts: no iteration-000001.jsonl and so on in it, its rollouts/ or its step3_ppo/rollouts/; "
        "stage 3 writes them from its first iteration"
    )


def load(files: dict[int, Path], iteration: int) -> Iteration:
    """The rows of an iteration. Raises ConfigError with the nearest iterations if it was not kept."""
    if iteration not in files:
        below, above = [n for n in files if n < iteration], [n for n in files if n > iteration]
        near = [str(n) for n in (*below[-1:], *above[:1])]
        raise ConfigError(
            f"there are no rollouts of iteration {iteration}; the nearest {'are' if len(near) > 1 else 'is'} "
            f"{' and '.join(near)}; --list shows all {len(files)}; save_rollouts_every says what is kept"
        )
    rows = read_rollouts(files[iteration])
    if not rows:
        raise DataError(f"{files[iteration]} is empty")
    return Iteration(iteration, [{**row, "row": place} for place, row in enumerate(rows, start=1)])


# --- pages ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pages:
    """The rows of a view in order, and how one of them is printed."""

    count: int
    head: Callable[[], None]
    page: Callable[[int], None]
    shades: list[str]


def open_view(files: dict[int, Path], view: View) -> Pages:
    """The pages of one iteration, or of two beside each other. Raises ConfigError or DataError as `load` does."""
    left = load(files, view.iteration)
    shades = shades_of(left.rows)
    if view.shade not in shades:
        raise ConfigError(f"--colour {view.shade}: this run has no critic; use {' or '.join(shades)}")
    if view.beside is None:
        rows = ordered(left.rows, view.order, reverse=view.reverse)
        scale = scale_of(rows, view.shade)
        return Pages(
            len(rows),
            lambda: show_head([left], view, scale),
            lambda index: show_row(rows[index], view, scale),
            shades,
        )
    right = load(files, view.beside)
    beside = pairs(left, right, view.order, reverse=view.reverse)
    scale = scale_of([*left.rows, *right.rows], view.shade)
    return Pages(
        len(beside),
        lambda: show_head([left, right], view, scale),
        lambda index: show_pair(*beside[index], view, scale),
        shades,
    )


def print_all(files: dict[int, Path], view: View, *, limit: int | None) -> None:
    """Every page, one after the other; the first `limit`."""
    pages = open_view(files, view)
    pages.head()
    for index in range(min(pages.count, limit or pages.count)):
        pages.page(index)


def turn_pages(files: dict[int, Path], view: View, *, limit: int | None) -> None:
    """One row a page; keys change the page, the order and the colours."""
    shown, index, names = screen(), 0, sorted(files)
    pages = open_view(files, view)
    while True:
        count = min(pages.count, limit or pages.count)
        index = max(0, min(index, count - 1))
        shown.clear()
        pages.head()
        pages.page(index)
        shown.print(f"\n{index + 1} of {count} · sorted by {view.order} · {KEYS}", style="dim", highlight=False)
        key = _key()
        if key in ("q", "Q", "\x04", "\x1b"):
            return
        if key in ("b", "p", "k", "\x1b[D", "\x1b[A"):
            index -= 1
        elif key in (" ", "n", "j", "\r", "\n", "\x1b[C", "\x1b[B"):
            index += 1
        elif key in ("+", "-"):
            place = names.index(view.iteration) + (1 if key == "+" else -1)
            view = replace(view, iteration=names[max(0, min(place, len(names) - 1))])
        elif key == "s":
            view, index = replace(view, order=_next(list(ORDERS), view.order)), 0
        elif key == "r":
            view, index = replace(view, reverse=not view.reverse), 0
        elif key == "c":
            view = replace(view, shade=_next(pages.shades, view.shade))
        pages = open_view(files, view)


def _key() -> str:
    try:
        return click.getchar()
    except (KeyboardInterrupt, EOFError):
        return "q"


def _next(names: list[str], name: str) -> str:
    return names[(names.index(name) + 1) % len(names)]


# --- what a page holds ------------------------------------------------------------------------------------------------


def show_head(iterations: Sequence[Iteration], view: View, scale: float) -> None:
    """The figures of one iteration in a line, or of two as a table; then the meaning of the colours."""
    if len(iterations) == 1:
        found = ", ".join(f"{name} {figure(value)}" for name, value in summary(iterations[0].rows).items())
        text = f"iteration {iterations[0].number}: {len(iterations[0].rows)} responses; {found}"
        screen().print(text, markup=False, highlight=False)
    else:
        left, right = (summary(iteration.rows) for iteration in iterations)
        columns = ["", *(f"iteration {iteration.number}" for iteration in iterations), "change"]
        table("two iterations", columns, [[name, left[name], right[name], right[name] - left[name]] for name in left])
    screen().print(legend(view.shade, scale))


def show_row(row: Row, view: View, scale: float) -> None:
    """One prompt and its response, with the tokens that stand out."""
    from rich.text import Text

    shown = screen()
    shown.rule(Text(headline(row)), align="left", style="dim")
    shown.print(prompt_text(row), soft_wrap=True)
    shown.print(response_text(row, view.shade, scale), soft_wrap=True)
    shown.print(Text(strongest(row, view.shade), "dim"), soft_wrap=True)


def show_pair(left: Row, right: Row, view: View, scale: float) -> None:
    """Side by side where the screen is wide enough, else one under the other; one prompt, when it is the same."""
    from rich.table import Table
    from rich.text import Text

    shown = screen()
    same = left["prompt"] == right["prompt"]
    shown.rule(Text("the same prompt" if same else "prompts of equal rank"), align="left", style="dim")
    if same:
        shown.print(prompt_text(left), soft_wrap=True)
    cells: list[Any] = []
    for row in (left, right):
        parts = [Text(headline(row), "dim"), *([] if same else [prompt_text(row)])]
        cells.append(Text("\n").join([*parts, response_text(row, view.shade, scale)]))
    if shown.width < NARROWEST_BESIDE:
        for number, cell in zip((view.iteration, view.beside), cells, strict=True):
            shown.print(Text.assemble((f"iteration {number}: ", "bold"), cell), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 3), expand=True)
    for _ in cells:
        grid.add_column(ratio=1, overflow="fold")
    grid.add_row(*cells)
    shown.print(grid)


if __name__ == "__main__":
    main()
