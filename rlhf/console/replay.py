"""The events of a stage, as `train.py` reads them from its output."""

from __future__ import annotations

import json
from typing import Any, TextIO

from rlhf import process
from rlhf.console import progress, say, table, warn
from rlhf.console.bars import Bar, PlainBar
from rlhf.console.screen import EVENT_MARK, interactive
from rlhf.console.text import figure


class Replay:
    """Shows the events in a stage's output on this process's console and writes its plain text to `log`.

    `line()` takes one line of output: an event is shown and logged as text; anything else, such as a library's output,
    is only logged. `close()` ends bars that a stage left open when it died.
    """

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._bars: dict[str, tuple[Any, Bar, PlainBar]] = {}

    def wait(self, name: str) -> None:
        """On a terminal, show that `name` is running, until `close()`; its own bars appear below."""
        if interactive() and process.is_main():
            shown = progress(name, unit="")
            self._bars[""] = (shown, shown.__enter__(), PlainBar(name, stream=self._log, total=None, unit=""))

    def line(self, text: str) -> None:
        _, mark, body = text.partition(EVENT_MARK)  # a remote launcher puts the host's name before it
        try:
            event = json.loads(body) if mark else None
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._write(text)
        elif event.get("event") == "say":
            say(event["text"])
            self._write(event["text"])
        elif event.get("event") == "warn":
            warn(event["text"])
            self._write(f"warning: {event['text']}")
        elif event.get("event") == "table":
            table(event["title"], event["columns"], event["rows"])
            for row in [[event["title"]], event["columns"], *event["rows"]]:
                self._write("\t".join(map(figure, row)))
        elif event.get("event") == "bar":
            self._bar(event)

    def _bar(self, event: dict[str, Any]) -> None:
        name = event["name"]
        if event["what"] == "open":
            settings = {"total": event["total"], "unit": event["unit"], "start": event["start"]}
            inner = bool(self._bars.keys() - {""})
            shown = progress(name, **settings)
            self._bars[name] = (shown, shown.__enter__(), PlainBar(name, stream=self._log, inner=inner, **settings))
        elif name in self._bars and event["what"] == "update":
            for bar in self._bars[name][1:]:
                bar.update(event["done"], event["metrics"])
        elif name in self._bars:
            self._end(name)

    def _end(self, name: str) -> None:
        shown, _, logged = self._bars.pop(name)
        logged.close()
        shown.__exit__(None, None, None)

    def _write(self, text: str) -> None:
        print(text, file=self._log, flush=True)

    def close(self) -> None:
        for name in reversed(list(self._bars)):
            self._end(name)
