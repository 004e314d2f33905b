"""Input and output of a chat: on a terminal, or through pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from rlhf.chat.conversation import Answer
from rlhf.console.text import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROWEST_BESIDE = 72  # in a terminal with fewer columns, two answers are shown one under the other


def open_screen(commands: Iterable[str]) -> Pipe:
    """A `Terminal` if both input and output are terminals, else a `Pipe`."""
    return Terminal(commands) if sys.stdin.isatty() and sys.stdout.isatty() else Pipe()


class Pipe:
    """One question per line of standard input; answers alone on standard output. Ctrl-C ends the program."""

    strict = True  # a mistake shows in the exit code

    def __init__(self) -> None:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]

    def lines(self) -> Iterator[str]:
        yield from sys.stdin

    def interruptible(self) -> Any:
        """A context that gives a function: has the user asked to stop the answer?"""
        return nullcontext(lambda: False)

    def show(self, answers: Sequence[Answer]) -> None:
        """Print the answers as they are written; where there are two, each after its model's name."""
        for answer in answers:
            if len(answers) > 1:
                self._write(self.name(answer))
            for piece in answer:
                self._write(clean(piece))
            self._write("\n")

    def name(self, answer: Answer) -> str:
        return f"[{clean(answer.speaker.label)}] "

    def note(self, text: str) -> None:
        """Something about the conversation."""
        print(clean(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        print(f"error: {clean(text)}", file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def no_echo() -> Iterator[None]:
    """Keys that are typed meanwhile are kept for the next prompt and not shown in the middle of an answer."""
    try:
        import termios

        saved = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):  # the system has no such terminals, or input is not one
        yield
        return
    silent = [*saved[:3], saved[3] & ~termios.ECHO, *saved[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


class WordWrap:
    """Text that is written piece by piece, with a line break before a word that does not fit the line.

    A word is shown as it comes; when it turns out to be too long, it is erased and written again on the next line.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column, self._word = 0, ""  # cells used on this line, and the unfinished word at their end

    def add(self, piece: str) -> str:
        """What to send to the terminal for `piece`."""
        return "".join(self._character(character) for character in piece)

    def _character(self, character: str) -> str:
        if character == "\n":
            self._column, self._word = 0, ""
            return "\n"
        if character == "\t":
            character = " "
        cells, wide = cell_len(character), cell_len(self._word)
        if self._column + cells < self._width():
            self._column += cells
            # between wide characters (Chinese, Japanese) a line may break anywhere
            self._word = "" if character == " " or cells > 1 else self._word + character
            return character
        if character == " ":
            self._column, self._word = 0, ""
            return "\n"
        if not 0 < wide < self._column:
            self._column, self._word = cells, character
            return f"\n{character}"
        self._word += character
        self._column = wide + cells
        return f"\033[{wide}D\033[K\n{self._word}"


class Terminal(Pipe):
    """A prompt with line editing and history. Ctrl-C stops an answer; pressed twice at the prompt, it ends the chat."""

    strict = False

    def __init__(self, commands: Iterable[str]) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False)
        self.colour = self.console.color_system is not None
        self._wrap = WordWrap(lambda: self.console.width)
        self.prompt = self._input_prompt("you › ", edited=self._edit_lines([f"/{c}" for c in commands]))

    def _input_prompt(self, text: str, *, edited: bool) -> str:
        if not self.colour:
            return text
        # readline must know which characters have no width
        begin, end = ("\001", "\002") if edited else ("", "")
        return f"{begin}\033[1;36m{end}{text}{begin}\033[0m{end}"

    def _edit_lines(self, commands: Sequence[str]) -> bool:
        """Line editing, history over sessions and completion of commands; False if the system has no readline."""
        try:
            import readline
        except ImportError:
            return False
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        history = Path(state).expanduser() / "rlhf" / "chat_history"
        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            readline.read_history_file(history)
        except OSError:
            pass  # a home that cannot be written: the history lasts for this session
        readline.set_history_length(1000)
        readline.set_completer_delims("")

        def complete(text: str, n: int) -> str | None:
            return next(islice((c for c in commands if text and c.startswith(text)), n, None), None)

        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
        self._history = (readline, history)
        return True

    def lines(self) -> Iterator[str]:
        pressed = False
        while True:
            try:
                line = input(self.prompt)
            except EOFError:
                print()
                break
            except KeyboardInterrupt:
                print()
                if pressed:
                    break
                pressed = True
                self.note("press Ctrl-C again, or type /quit, to leave")
                continue
            pressed = False
            self._remember()
            yield line

    def _remember(self) -> None:
        if hasattr(self, "_history"):
            readline, file = self._history
            try:
                readline.write_history_file(file)
            except OSError:
                del self._history

    @contextmanager
    def interruptible(self) -> Iterator[Callable[[], bool]]:
        """After the first Ctrl-C the answer ends with its next token; the second one raises KeyboardInterrupt."""
        pressed: list[bool] = []

        def note(_signal: int, _frame: Any) -> None:
            if pressed:
                raise KeyboardInterrupt
            pressed.append(True)

        before = signal.signal(signal.SIGINT, note)
        try:
            with no_echo():
                yield lambda: bool(pressed)
        finally:
            signal.signal(signal.SIGINT, before)

    def show(self, answers: Sequence[Answer]) -> None:
        try:
            if len(answers) > 1 and self.console.width >= NARROWEST_BESIDE:
                self._show_beside(answers)
            else:
                super().show(answers)
        except KeyboardInterrupt:
            print()
            for answer in answers:
                answer.ended = "interrupted"

    def name(self, answer: Answer) -> str:
        text = f"{clean(answer.speaker.label)} › "
        return f"\033[1;32m{text}\033[0m\n" if self.colour else f"{text}\n"

    def _write(self, text: str) -> None:
        super()._write(self._wrap.add(text) if self.colour else text)

    def _show_beside(self, answers: Sequence[Answer]) -> None:
        """Two columns, which get one token each in turns; until they are complete, only the last lines are shown."""
        from rich.live import Live

        writers = [iter(answer) for answer in answers]
        with Live(console=self.console, refresh_per_second=8, vertical_overflow="visible") as live:
            while writers:
                writers = [writer for writer in writers if next(writer, None) is not None]
                live.update(self._columns(answers, lines=max(self.console.height - 3, 1)))
            live.update(self._columns(answers, lines=None), refresh=True)

    def _columns(self, answers: Sequence[Answer], *, lines: int | None) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True, header_style="bold green", box=None, padding=(0, 2, 0, 0))
        width = self.console.width // len(answers) - 2
        cells = []
        for answer in answers:
            table.add_column(Text(clean(answer.speaker.label)), width=width, overflow="fold")
            wrapped = Text(clean(answer.text)).wrap(self.console, width, overflow="fold")
            cells.append(Text("\n").join(wrapped if lines is None else wrapped[-lines:]))
        table.add_row(*cells)
        return table

    def note(self, text: str) -> None:
        self.console.print(clean(text), style="dim", soft_wrap=True)

    def error(self, text: str) -> None:
        self.console.print(clean(text), style="red", soft_wrap=True)
