"""The click command of `train.py` and the stages: errors as one line each, exit codes, and help in groups.

Imports no torch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from rlhf import process, slurm
from rlhf.console.text import clean
from rlhf.errors import EXIT_FAILURE, EXIT_USER, Terminated, error_lines
from rlhf.files import expand_user

ECHO_SECONDS = 5.0  # in which a signal may come twice, from a scheduler and from what it started
WIDEST_HELP = 110  # columns; a wider terminal does not make the lines of a help longer


class Command(click.Command):
    """A click command whose callback returns an exit code. Every error is shown as lines that start with `error: `.

    `groups` maps a heading of the help to the names of its parameters. Parameters of no group come last, under "Other".
    `is_rank`: a launcher may start it as a rank; other commands ignore a launcher's variables.
    """

    def __init__(
        self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None, is_rank: bool = False, **kwargs: Any
    ) -> None:
        kwargs["context_settings"] = {"max_content_width": WIDEST_HELP, **(kwargs.get("context_settings") or {})}
        super().__init__(*args, **kwargs)
        self.groups, self.is_rank = groups or {}, is_rank
        self.params.append(
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="a traceback with each error"
            )
        )

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        process.set_is_rank(self.is_rank)
        if self.is_rank and not process.launched():
            for name, value in slurm.rank_variables().items():
                os.environ.setdefault(name, value)
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        try:
            with terminable():
                code = super().main(*args, standalone_mode=False, **kwargs)
        except click.Abort:  # click turns Ctrl-C into this
            code = show_error(KeyboardInterrupt())
        except click.UsageError as error:
            code = EXIT_USER
            _show([f"{error.format_message().rstrip('.')}; --help lists the options"])
        except click.ClickException as error:
            code = EXIT_USER
            _show([error.format_message()])
        except (Exception, KeyboardInterrupt, Terminated) as error:
            code = show_error(error)
        return leave(code or 0)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.groups:
            super().format_options(ctx, formatter)
            return
        # click names its own --help with an underscore
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        names = {p: "help" if "--help" in p.opts else p.name for p in options}
        records = {name: p.get_help_record(ctx) for p, name in names.items()}
        named = {name for names in self.groups.values() for name in names}
        rest = {"Other": [name for name in records if name and name not in named]}
        for heading, names in {**self.groups, **rest}.items():
            rows = [record for name in names if (record := records.get(name))]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows, col_max=34)


class UserPath(click.Path):
    """A path on this machine. A leading `~` is the user's home, also where no shell replaces it (`--output=~/x`)."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            return expand_user(Path(os.fsdecode(super().convert(value, param, ctx))))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["RLHF_DEBUG"] = "1"


def show_error(error: BaseException) -> int:
    """Show an error as its lines and return the exit code. With RLHF_DEBUG=1 the traceback is shown first. With
    RLHF_EVENTS=1 that of a failure is also printed; only the stage's log gets it."""
    lines, code = error_lines(error)
    if process.shows_tracebacks() or (code == EXIT_FAILURE and process.sends_events()):
        traceback.print_exception(error)
    _show(lines)
    return code


_ways_out: list[Callable[[int], None]] = []


def leave_through(shutdown: Callable[[int], None]) -> None:
    """End the process by `shutdown(code)`: a rank that joined a process group cannot just exit."""
    _ways_out.append(shutdown)


def leave(code: int) -> NoReturn:
    for shutdown in _ways_out:
        shutdown(code)
    raise SystemExit(code)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM (and SIGHUP, unless it is ignored) raises `Terminated` in the main thread.

    A repetition within `ECHO_SECONDS` does not count: schedulers signal every process, and what starts a process passes
    the signal on as well.
    """
    raised: list[float] = []

    def handler(*_: object) -> None:
        now = time.monotonic()
        if not raised or now - raised[0] > ECHO_SECONDS:
            raised[:] = [now]
            raise Terminated

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _show(lines: Sequence[str]) -> None:
    tag = "" if process.is_main() else f"rank {process.rank()}: "
    for line in lines:
        print(f"error: {tag}{clean(line)}", file=sys.stderr)
    sys.stderr.flush()
