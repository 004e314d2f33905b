"""python -m scripts.lower_bounds: are the oldest releases that pyproject.toml admits really enough?

A new virtual environment gets the project with each dependency at exactly its lower bound (what the tests alone need is
as new as can be), and the quick tests run in it; what follows `--` goes to pytest instead. Some minutes, and the
downloads. It ends with pytest's exit code, or with 1 where the releases cannot be installed together.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import click

from rlhf import console
from rlhf.command import Command
from rlhf.errors import ConfigError, RLHFError
from rlhf.pipeline.launch import ROOT

QUICK = ("-q", "-m", "not ranks and not process and not slow")


class NotInstalled(RLHFError):
    """pip could not do it; the text holds the end of what it said."""


def lower_bounds(pyproject: str) -> dict[str, str]:
    """Each dependency in the text of a pyproject.toml with its lower bound: `"numpy>=2.0"` → `{"numpy": "2.0"}`."""
    wanted = tomllib.loads(pyproject)["project"]["dependencies"]
    found = {text: re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)", text) for text in wanted}
    wrong = [text for text, match in found.items() if match is None]
    if wrong:
        raise ConfigError(*(f"pyproject.toml: {text!r} is not of the form name>=version" for text in wrong))
    return {match[1]: match[2] for match in found.values() if match}


@click.command(cls=Command, help=(__doc__ or "").partition(": ")[2])
@click.option("--python", default=sys.executable, show_default="this one", help="which Python is tried")
@click.argument("arguments", nargs=-1)
def main(python: str, arguments: tuple[str, ...]) -> int:
    bounds = lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="lower-bounds-") as name:
        folder = Path(name)
        console.say(f"installing {len(bounds)} dependencies at their lower bounds")
        own = _install(python, folder, bounds)
        console.say(_quietly([*_pip(own), "list"]))
        (folder / "tmp").mkdir()
        words = [str(own), "-m", "pytest", *(arguments or QUICK)]
        code = subprocess.run(
            words, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder / "tmp")}, check=False
        ).returncode
    verdict = "the tests pass" if code == 0 else f"pytest ended with {code}"
    console.say(f"{verdict} at {', '.join(f'{name} {bound}' for name, bound in bounds.items())}")
    return code


def _install(python: str, folder: Path, bounds: dict[str, str]) -> Path:
    """The Python of a new virtual environment that holds the project at its lower bounds."""
    own = folder / "venv" / "bin" / "python"
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={bound}\n" for name, bound in bounds.items()), encoding="utf-8")
    _quietly([python, "-m", "venv", str(folder / "venv")])
    _quietly([*_pip(own), "install", "-c", str(constraints), "-e", f"{ROOT}[test]"])
    return own


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check"]


def _quietly(words: Sequence[str]) -> str:
    """Run a command that must succeed; what it wrote to its output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"[-4000:]
        raise NotInstalled(f"{' '.join(words)} ended with {done.returncode}:\n{said}")
    return done.stdout.rstrip()


if __name__ == "__main__":
    main()
