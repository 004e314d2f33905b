"""Hosts that are reached by a pretended ssh: commands run on this machine, as on a host of that name.

A test file uses a fixture from here by its name: `hosts = hosts.hosts`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.pipeline import node, remote

# ssh [-T] [-o name=value]... HOST COMMAND
_SSH = """#!{python}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[2 if words[0] == "-o" else 1:]
host, command = words
about = json.loads((Path(__file__).parent / f"{{host}}.json").read_text())
with (Path(__file__).parent / "commands.txt").open("a") as file:
    print(host, command, file=file)
if "fails" in about:
    code, text = about["fails"]
    print(text, file=sys.stderr)
    raise SystemExit(code)
environ = {{"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "SSH_CONNECTION": about["connection"]}}
if about["runs"] or not command.endswith(" ask"):
    os.execve("/bin/sh", ["sh", "-c", command], environ)
print("Welcome to", host)
print(json.dumps(about["answer"]))
"""


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`hosts("node-a", node_b={"gpus": 8})` → a hostfile of hosts with one slot each; a value changes what the host
    answers, and `("fails", code, text)` lets the ssh end so. `slots=2` gives them two. With `runs` the hosts are really
    asked; else the answers are this process's own, which is faster."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(_SSH.format(python=sys.executable))
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    remote.ask.cache_clear()

    def make(*plain: str, slots: int = 1, runs: bool = False, **special: Any) -> Path:
        own = {} if runs else node.facts({"folder": os.getcwd(), "port": 0, "ranks": slots})
        named = {**{name: {} for name in plain}, **{name.replace("_", "-"): value for name, value in special.items()}}
        for number, (name, answer) in enumerate(named.items()):
            address = f"10.0.0.{number + 1}"
            about: dict[str, Any] = {"connection": f"10.0.0.9 50000 {address} 22", "runs": runs}
            if isinstance(answer, tuple):
                about["fails"] = answer[1:]
            elif not runs:
                versions = own["versions"] | answer.get("versions", {})
                about["answer"] = {**own, "caller": "10.0.0.9", "address": address, **answer, "versions": versions}
            (folder / f"{name}.json").write_text(json.dumps(about))
        path = tmp_path / "hosts"
        path.write_text("".join(f"{name} slots={slots}\n" for name in named))
        return path

    return make
