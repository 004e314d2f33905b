"""Two nodes, pretended by two ranks of which each says that it is alone on its machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ConfigError
from rlhf.training import distributed, nodes

APART = {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "RLHF_TIMEOUT_SECONDS": "30"}


def _check(folder: Path, versions: list[dict[str, str]], blind: bool) -> list[str]:
    nodes.socket.gethostname = lambda: f"host-{distributed.rank()}"
    nodes.on_a_node = lambda: versions[distributed.rank()]  # type: ignore[assignment]
    if blind and distributed.rank() == 1:
        nodes.appears = lambda path: False  # type: ignore[assignment]
    try:
        nodes.check_nodes(folder)
    except ConfigError as error:
        return error.problems
    return []


def test_nodes_that_are_not_alike(run_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    """All ranks say the same, so that every node tells its user."""
    same = [{"torch": "2.13.0", "source": "a"}] * 2
    assert run_ranks(_check, tmp_path, same, False, environment=APART) == [[], []]
    assert list(tmp_path.iterdir()) == []
    other = [same[0], {"torch": "2.13.0", "source": "b"}]
    first, second = run_ranks(_check, tmp_path, other, True, environment=APART)
    differ = "node 1 (host-1) and node 0 (host-0) differ: the files of this project are not the same; "
    assert first == [
        f"{differ}install the same on all nodes",
        f"node 1 (host-1) does not see {tmp_path} of node 0 (host-0): all nodes must share the folder of the run",
    ]
    assert second == first


def _go_silent(blocked: bool) -> list[str]:
    """Both watch each other; after two seconds rank 1 says nothing any more, or hears nothing either."""
    told: list[str] = []
    nodes._BEAT_SECONDS = 0.2
    nodes.socket.gethostname = lambda: f"host-{distributed.rank()}"
    distributed.timeout = lambda: nodes.timedelta(seconds=3)  # type: ignore[assignment]
    store = nodes._connect()
    began = time.monotonic()

    class Silent:
        """A store behind a link that is cut: what is written is lost, and perhaps nothing comes back."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def set(self, key: str, value: str) -> None:
            if time.monotonic() - began < 2:
                store.set(key, value)
            elif blocked:
                time.sleep(600)

    silent = distributed.rank() == 1
    watch = nodes._Watch(Silent() if silent else store, told.append)
    nodes.threading.Thread(target=watch.exchange, daemon=True).start()
    if not silent or blocked:
        watch.look()
    distributed.barrier()
    return told


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [False, True])
def test_a_node_that_says_nothing_is_lost(run_ranks: Callable[..., list[Any]], blocked: bool) -> None:
    """A rank waited a day for one whose power was cut, as it waits for one that writes a file. And the one behind the
    cut link never came back from asking."""
    first, second = run_ranks(_go_silent, blocked, environment=APART)
    line = "{} has not answered {} for 3 s: it is down, or the link to it is cut"
    assert first == [line.format("node 1 (host-1)", "node 0 (host-0)")]
    assert second == ([line.format("node 0 (host-0)", "node 1 (host-1)")] if blocked else [])


@pytest.mark.parametrize(
    "text, said",
    [
        ("[pair.cc:547] Connection closed by peer [10.0.0.2]:40112", "node 1 (b) has ended"),
        ("NCCL error: remote process exited or there was a network error: ncclRemoteError", "another node has ended"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_errors_between_nodes_name_the_node(text: str, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes.process, "node_count", lambda: 3)
    monkeypatch.setattr(nodes, "name_of_node", lambda: "node 0 (a)")
    known = {"10.0.0.1": "node 0 (a)", "10.0.0.2": "node 1 (b)", "10.0.0.3": "node 2 (c)"}
    monkeypatch.setattr(nodes, "_nodes", known)
    line = nodes.lost_node(RuntimeError(text))
    assert line is None if said is None else line is not None and line.startswith(f"{said}, or cannot be reached from")
    monkeypatch.setattr(nodes.process, "node_count", lambda: 1)
    assert nodes.lost_node(RuntimeError(text)) is None
