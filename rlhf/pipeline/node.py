"""python -m rlhf.pipeline.node ask|run: the other end of an ssh of `train.py`, on each host of its hostfile.

It reads a line of JSON. `ask` tells what this host has. `run` starts this host's ranks and follows them: their output
goes out, a line with the name of a signal passes that signal on, and at the end of the input the ranks are killed.
Imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf import hardware
from rlhf.command import show_error, terminable
from rlhf.errors import EXIT_DONE, ConfigError, Terminated
from rlhf.files import appears
from rlhf.memory.cards import main_memory, this_card
from rlhf.pipeline.gpu_state import gpu_problems, gpu_warnings
from rlhf.pipeline.launch import launch
from rlhf.pipeline.placed import Placement, RankFailed
from rlhf.pipeline.remote import failure_line
from rlhf.versions import on_a_node


def facts(question: dict[str, Any]) -> dict[str, Any]:
    """What this host has, as JSON values."""
    gpus, card = hardware.accelerators(), this_card()
    connection = os.environ.get("SSH_CONNECTION", "").split()  # client, its port, this host, its port
    return {
        "gpus": gpus,
        "bf16": gpus > 0 and hardware.bf16_gpus(),
        "card": asdict(card) if gpus and card else None,
        "cores": hardware.cores(),
        "main_memory": main_memory(),
        "versions": on_a_node(),
        "sees": Path(question["folder"]).is_dir(),
        "address": connection[2] if len(connection) == 4 else "",
        "caller": connection[0] if len(connection) == 4 else "",
        "problems": gpu_problems(),
        "warnings": gpu_warnings(Placement(ranks=question["ranks"], gpus=gpus > 0)),
        "port_is_free": hardware.port_is_free(question["port"]),
    }


def run(task: dict[str, Any]) -> int:
    """Run this host's ranks to their end; returns the exit code."""
    host = socket.gethostname()
    threading.Thread(target=_obey, daemon=True, name="signals").start()
    try:
        with terminable():
            _enter(host, task)
            placement = Placement(**task["placement"])
            launch(task["package"], task["arguments"], placement, line=_print)
            return EXIT_DONE
    except RankFailed as failure:
        tagged = RankFailed([f"{host}: {problem}" for problem in failure.problems], failure.exit_code)
        _print(failure_line(tagged))
        return failure.exit_code
    except ConfigError as error:
        _print(failure_line(RankFailed(error.problems, error.exit_code)))
        return error.exit_code
    except (KeyboardInterrupt, Terminated) as error:
        return error.exit_code if isinstance(error, Terminated) else show_error(error)


def _enter(host: str, task: dict[str, Any]) -> None:
    """Go to the folder of the run, and wait for the stage's settings to appear in it."""
    folder, arguments = task["folder"], task["arguments"]
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(f"{host} cannot enter {folder} ({error.strerror}): all nodes must see it") from None
    if "--config" in arguments:
        config = Path(arguments[arguments.index("--config") + 1])
        if not appears(config):
            raise ConfigError(f"{host} does not see {config}: all nodes must share the folder of the run")


def _print(text: str) -> None:
    print(text, flush=True)


def _obey() -> None:
    for line in sys.stdin:
        name = line.strip()
        if name in signal.Signals.__members__:
            os.kill(os.getpid(), signal.Signals[name])
    for number in (signal.SIGTERM, signal.SIGINT):  # the second ends the ranks at once
        os.kill(os.getpid(), number)
        time.sleep(0.5)
    time.sleep(10)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Do what the command line and the input say; returns the exit code."""
    task = json.loads(sys.stdin.readline())
    os.environ.update(task["environment"])
    if sys.argv[1:] == ["ask"]:
        print(json.dumps(facts(task)), flush=True)
        return EXIT_DONE
    return run(task)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # sshd may leave it ignored
    raise SystemExit(main())
