"""Several machines: whether they are alike, and which one is lost.

A process that has died closes its connections, and the others see it at once. A machine without power, or behind a
link that is cut, says nothing: a rank would wait for it as long as for one that writes a large file. So one rank of
each node tells the others every few seconds, through the group's store, that it is alive.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhf import process
from rlhf.console import warn
from rlhf.errors import EXIT_FAILURE, ConfigError
from rlhf.files import appears
from rlhf.training import distributed
from rlhf.training.network import address_towards
from rlhf.versions import on_a_node, version_problems

_BEAT_SECONDS = 5.0
_LOST = re.compile(
    r"connection (closed|reset)|broken pipe|connection (refused|timed out)|no route to host|remote ?error|socket"
    r"|timed out waiting|collective operation timeout",
    re.IGNORECASE,
)

_nodes: dict[str, str] = {}  # address → name of the node


# --- are they alike? --------------------------------------------------------------------------------------------------


def check_nodes(folder: Path) -> None:
    """Raise ConfigError, on every rank, when nodes have other versions than the first, or do not see the run's folder;
    warn when their GPUs differ. All ranks call it."""
    if process.node_count() == 1:
        return
    rank = distributed.rank()
    token = folder / f".nodes-{distributed.gather_objects(secrets.token_hex(4))[0]}.part"
    if rank == 0:
        token.touch()
    distributed.barrier()
    first_here = process.local_rank() == 0
    sees = not first_here or rank == 0 or appears(token)
    card = torch.cuda.get_device_name() if distributed.on_gpu() and torch.cuda.is_available() else ""
    told = (name_of_node(), on_a_node() if first_here else None, sees, card)
    everywhere = distributed.gather_objects(told)
    address = address_towards(os.environ["MASTER_ADDR"])
    _nodes.update({where: name for where, name in distributed.gather_objects((address, told[0])) if where})
    if rank == 0:
        token.unlink(missing_ok=True)
    found = version_problems({name: versions for name, versions, _, _ in everywhere if versions is not None})
    found += [
        f"{name} does not see {folder.absolute()} of {everywhere[0][0]}: all nodes must share the folder of the run"
        for name, _, seen, _ in everywhere
        if not seen
    ]
    if found:
        raise ConfigError(*found)
    cards = {name: card for name, _, _, card in everywhere if card}
    if len(set(cards.values())) > 1:
        warn(f"the nodes' GPUs differ ({', '.join(f'{n} {c}' for n, c in cards.items())}): the slowest sets the pace")


def name_of_node() -> str:
    """This machine, as messages name it."""
    return f"node {process.node()} ({socket.gethostname()})"


def lost_node(error: BaseException) -> str | None:
    """A line that says which node is lost, for an error of the libraries between nodes; None for other errors."""
    text = str(error)
    if process.node_count() == 1 or not isinstance(error, RuntimeError) or not _LOST.search(text):
        return None
    here = name_of_node()
    named = [name for address, name in _nodes.items() if address in re.findall(r"\d+\.\d+\.\d+\.\d+", text)]
    others = [name for name in dict.fromkeys(_nodes.values()) if name != here]
    names = [name for name in named if name != here] or (others if len(others) == 1 else [])
    who = names[0] if names else "another node"
    return (
        f"{who} has ended, or cannot be reached from {here}; its own output says why ({text.strip().splitlines()[0]})"
    )


# --- are they there? --------------------------------------------------------------------------------------------------


def watch_nodes() -> None:
    """From now on end this process with one line when another node has been silent for as long as a rank waits for
    others (RLHF_TIMEOUT_SECONDS). Call it once, in the process group."""
    if process.node_count() > 1 and process.local_rank() == 0:
        _Watch(_connect(), _end).begin()


def _connect() -> Any:
    """A connection of its own: the group's is held by whatever waits on it."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Any = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))  # type: ignore[attr-defined]
    return dist.PrefixStore("nodes", store)  # type: ignore[attr-defined]


class _Watch:
    """Tells the other nodes through `store` that this one is alive, and calls `end` with a line when one is silent.

    Two threads: where the link to the store is cut, whatever asks it never comes back.
    """

    def __init__(self, store: Any, end: Callable[[str], None]) -> None:
        self.store, self.end = store, end
        self.own, self.nodes = process.node(), process.node_count()
        self.limit = distributed.timeout().total_seconds()
        # the store is on node 0
        self.names = {node: f"node {node}" for node in range(self.nodes)} | {0: f"node 0 ({os.environ['MASTER_ADDR']})"}
        self.seen = dict.fromkeys(range(self.nodes), time.monotonic())

    def begin(self) -> None:
        for work in (self.exchange, self.look):
            threading.Thread(target=work, daemon=True, name=f"nodes: {work.__name__}").start()

    def exchange(self) -> None:
        """Write this node's sign of life and read those of the others, for ever."""
        number, last = 0, dict.fromkeys(range(self.nodes), "")
        while True:
            number += 1
            try:
                self.store.set(f"{self.own}", f"{number} {name_of_node()}")
                for node in set(range(self.nodes)) - {self.own}:
                    if self.store.check([f"{node}"]):
                        beat, _, self.names[node] = self.store.get(f"{node}").decode().partition(" ")
                        if beat != last[node]:
                            last[node], self.seen[node] = beat, time.monotonic()
            except (RuntimeError, OSError):  # of the network
                pass
            time.sleep(self.pause)

    def look(self) -> None:
        """Come back when a node has been silent for too long, after `end` was told."""
        while True:
            time.sleep(self.pause)
            for node in range(self.nodes):
                if node != self.own and time.monotonic() - self.seen[node] > self.limit:
                    silence = f"has not answered {name_of_node()} for {self.limit:.0f} s"
                    self.end(f"{self.names[node]} {silence}: it is down, or the link to it is cut")
                    return

    @property
    def pause(self) -> float:
        return min(_BEAT_SECONDS, self.limit / 4)


def _end(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(EXIT_FAILURE)
