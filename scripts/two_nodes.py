"""python -m scripts.two_nodes: the demo on two pretended nodes of this machine, and what may happen to them.

Each node is a network namespace with its own address and host name, joined to the other by a bridge; both see the same
files. The demo is started in each of the ways of docs/cluster.md, and its metrics, rollouts and models must be those of
two ranks on one machine. Then a node dies, comes late, and so on: both nodes must end with a line that says so, and the
same command must go on. It needs Linux, root and `ip`; `sshd` for hostfiles, `faketime` for a clock that is off and
`bindfs` for a folder that is slow to show files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from rlhf.command import Command, UserPath
from rlhf.console import say
from rlhf.errors import EXIT_DONE, EXIT_FAILURE, EXIT_TERMINATED, EXIT_USER, ConfigError
from rlhf.files import claim_folder, empty_folder
from rlhf.pipeline.placed import ROOT
from scripts.method_stages import METHODS
from scripts.nightly_kill import differences
from scripts.pretended_nodes import (
    PORT,
    SILENCE_SECONDS,
    WAYS,
    Trial,
    by_node_rank,
    environment,
    from_hostfile,
    short,
    two_nodes,
    until,
    wait,
)

# --- what may happen: the exit codes, and the words that must be in the output of each node ---------------------------

SLOW_SECONDS = 10
_WITH_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin"
TOOLS = {"hostfile": "sshd", "hosts-one-dies": "sshd", "hosts-term": "sshd", "host-is-down": "sshd"}
TOOLS |= {"clock-is-off": "faketime", "slow-folder": "bindfs"}
Expected = tuple[list[int], list[int], list[str]]  # found codes, expected codes, words that each node must have said


def dies(trial: Trial) -> Expected:
    """Power is cut: no packet says that it has ended."""
    first, second = trial.both()
    until(lambda: trial.step() >= 2)
    trial.nodes[1].kill()
    codes = wait([first], seconds=6 * SILENCE_SECONDS)
    wait([second])
    return codes, [EXIT_FAILURE], ["node 1 (node-b)", ""]


def crashes(trial: Trial) -> Expected:
    """The other node's ranks are killed, and the network says so."""
    first, second = trial.both()
    until(lambda: trial.step() >= 2)
    for pid in trial.nodes[1].pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    codes = wait([first], seconds=6 * SILENCE_SECONDS)
    wait([second])
    return codes, [EXIT_FAILURE], ["node 1 (node-b)", ""]


def never_comes(trial: Trial) -> Expected:
    return wait([trial.node_rank(0)]), [EXIT_USER], ["rank 0 of 2, on node-a, has not met node 1", ""]


def late(trial: Trial) -> Expected:
    first = trial.node_rank(0)
    until(lambda: (trial.folder / trial.stages[0] / "config.yaml").exists())
    time.sleep(SILENCE_SECONDS / 2)
    return wait([first, trial.node_rank(1)]), [EXIT_DONE, EXIT_DONE], ["", ""]


def link_drops(trial: Trial) -> Expected:
    """For a time that is shorter than the limit."""
    started = trial.both()
    until(lambda: trial.step() >= 2)
    trial.nodes[1].link("down")
    time.sleep(SILENCE_SECONDS / 2)
    trial.nodes[1].link("up")
    return wait(started), [EXIT_DONE, EXIT_DONE], ["", ""]


def link_is_cut(trial: Trial) -> Expected:
    started = trial.both()
    until(lambda: trial.step() >= 2)
    trial.nodes[1].link("down")
    codes = wait(started, seconds=6 * SILENCE_SECONDS)
    return codes, [EXIT_FAILURE, EXIT_FAILURE], ["node 1 (node-b)", "node 0 ("]


def terminated(trial: Trial, *numbers: int) -> Expected:
    started = trial.both()
    until(lambda: trial.step() >= 2)
    for number in numbers:
        started[number].send_signal(signal.SIGTERM)
    return wait(started), [EXIT_TERMINATED, EXIT_TERMINATED], ["is written", "terminated"]


def hosts_one_dies(trial: Trial) -> Expected:
    """As `dies`, of ranks that were started by ssh."""
    started = from_hostfile(trial)
    until(lambda: trial.step() >= 2)
    trial.nodes[1].kill()
    return wait([started], seconds=6 * SILENCE_SECONDS), [EXIT_FAILURE], ["node 1 (node-b)", ""]


def hosts_terminated(trial: Trial) -> Expected:
    """SIGTERM to the one train.py, which has started all ranks by ssh."""
    started = from_hostfile(trial)
    until(lambda: trial.step() >= 2)
    started.send_signal(signal.SIGTERM)
    return wait([started]), [EXIT_TERMINATED], ["is written", ""]


def host_is_down(trial: Trial) -> Expected:
    trial.nodes[1].link("down")
    return wait([from_hostfile(trial)]), [EXIT_USER], ["node-b does not answer by ssh", ""]


def clock_is_off(trial: Trial) -> Expected:
    """By a day, on the second node."""
    second = trial.node_rank(1, python=["faketime", "-f", "+1d", sys.executable])
    return wait([trial.node_rank(0), second]), [EXIT_DONE, EXIT_DONE], ["", ""]


def slow_folder(trial: Trial) -> Expected:
    """The second node remembers for some time what a file was like, and that there was none, as on NFS."""
    remembered = ",".join(f"{what}_timeout={SLOW_SECONDS}" for what in ("negative", "entry", "attr"))
    script = f'bindfs -o nonempty,{remembered} {trial.folder} {trial.folder} && exec "$@"'
    second = trial.node_rank(1, python=["unshare", "--mount", "sh", "-c", script, "sh", sys.executable])
    return wait([trial.node_rank(0), second]), [EXIT_DONE, EXIT_DONE], ["", ""]


def other_version(trial: Trial) -> Expected:
    """The second node has another checkout of the project."""
    copy = trial.folder.parent / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "tests", "output"))
    with (copy / "rlhf" / "metrics.py").open("a") as file:
        file.write("# changed\n")
    started = [trial.node_rank(0), trial.node_rank(1, root=copy, variables={"PYTHONPATH": str(copy)})]
    said = "node 1 (node-b) and node 0 (node-a) differ: the files of this project are not the same"
    return wait(started), [EXIT_USER, EXIT_USER], [said, said]


def port_in_use(trial: Trial) -> Expected:
    listen = f"import socket, time; s = socket.create_server(('', {PORT})); time.sleep(60)"
    other = trial.nodes[0].start([sys.executable, "-c", listen], trial.folder.parent / "listen.txt")
    time.sleep(1)
    codes = wait([trial.node_rank(0)])
    other.kill()
    return codes, [EXIT_USER], [f"--master-port {PORT} is in use on this machine", ""]


def not_shared(trial: Trial) -> Expected:
    """The second node has the folder of the run for itself: an older copy of it, say."""
    own = trial.folder.parent / "own"
    shutil.rmtree(own, ignore_errors=True)
    _prepared(own, trial.folder.parent / "whole")
    claim_folder(own / trial.stages[0])
    script = f'mount --bind {own} {trial.folder} && exec "$@"'
    second = trial.node_rank(1, python=["unshare", "--mount", "sh", "-c", script, "sh", sys.executable])
    said = f"node 1 (node-b) does not see {trial.folder}/{trial.stages[0]} of node 0 (node-a)"
    return wait([trial.node_rank(0), second]), [EXIT_USER, EXIT_USER], [said, said]


def _prepared(folder: Path, whole: Path) -> None:
    """Make `folder` that of a run whose models and data are those that another run has prepared."""
    for each in (folder, folder / "prepare"):
        claim_folder(each)
    shutil.copy(whole / "prepare" / "done.json", folder / "prepare" / "done.json")


FAULTS: dict[str, Callable[[Trial], Expected]] = {
    "dies": dies,
    "crashes": crashes,
    "never-comes": never_comes,
    "late": late,
    "link-drops": link_drops,
    "link-is-cut": link_is_cut,
    "term-all": lambda trial: terminated(trial, 0, 1),
    "term-one": lambda trial: terminated(trial, 1),
    "hosts-one-dies": hosts_one_dies,
    "hosts-term": hosts_terminated,
    "host-is-down": host_is_down,
    "clock-is-off": clock_is_off,
    "slow-folder": slow_folder,
    "other-version": other_version,
    "port-in-use": port_in_use,
    "not-shared": not_shared,
}


# --- the command ------------------------------------------------------------------------------------------------------


@click.command("python -m scripts.two_nodes", cls=Command)
@click.option("--output-dir", type=UserPath(), default="two-nodes", help="folder of all runs; it is emptied")
@click.option("--ways", default=",".join(WAYS), help="ways to start, with commas between them; empty: none")
@click.option("--faults", default=",".join(FAULTS), help="what shall happen, with commas between; empty: nothing")
@click.option("--times", type=click.IntRange(min=1), default=1, help="how often all of it is done")
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], help="method of all runs", show_default=True)
def main(output_dir: Path, ways: str, faults: str, times: int, method: str) -> int:
    """Run the demo on two pretended nodes, in several ways and with several faults."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise ConfigError("it makes network namespaces: run it as root, with `ip` installed")
    names = [name for name in f"{ways},{faults}".split(",") if name]
    if unknown := [name for name in names if name not in {**WAYS, **FAULTS}]:
        raise ConfigError(f"{unknown[0]} is none of {', '.join([*WAYS, *FAULTS])}")
    missing = {TOOLS[name] for name in names if name in TOOLS and not shutil.which(TOOLS[name], path=_WITH_SBIN)}
    if missing:
        raise ConfigError(f"{', '.join(sorted(missing))} must be installed, or leave out what needs it")
    folder = output_dir.absolute()
    claim_folder(folder)
    empty_folder(folder)
    whole = folder / "whole"
    words = [sys.executable, str(ROOT / "train.py"), "--output-dir", str(whole), *short(method), "--num-gpus", "2"]
    with (folder / "whole.txt").open("wb") as said:
        subprocess.run(words, check=True, env=environment(), stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    say(f"two ranks on {socket.gethostname()}: done")
    wrong = 0
    for time_ in range(1, times + 1):
        for name in filter(None, ways.split(",")):
            with two_nodes() as nodes:
                trial = Trial(nodes, folder / f"{name}-{time_}", method)
                codes = WAYS[name](trial)
                wrong += _report(name, trial, whole, codes, [EXIT_DONE] * len(codes))
        for name in filter(None, faults.split(",")):
            with two_nodes() as nodes:
                trial = Trial(nodes, folder / f"{name}-{time_}", method, count=1)
                _prepared(trial.folder, whole)
                codes, expected, said = FAULTS[name](trial)
                wrong += _report(name, trial, None, codes, expected, said)
                for node in nodes:
                    node.link("up")
            with two_nodes() as nodes:  # the same commands go on
                trial = Trial(nodes, trial.folder, method, count=1)
                codes = by_node_rank(trial)
                wrong += _report(f"{name}, again", trial, whole, codes, [EXIT_DONE, EXIT_DONE])
    say(f"{wrong} of all were not as they should be" if wrong else "all was as it should be")
    return EXIT_FAILURE if wrong else EXIT_DONE


def _report(
    name: str, trial: Trial, whole: Path | None, codes: list[int], expected: list[int], said: Sequence[str] = ()
) -> bool:
    """Say how a trial went; whether something was wrong."""
    problems = [f"exit codes {codes}, not {expected}"] if codes != expected else []
    for number, words in enumerate(said):
        lines = [line for line in trial.said(number).splitlines() if words and words in line]
        if words and not lines:
            problems.append(f"{trial.nodes[number].name} did not say {words!r}")
        elif lines:
            say(f"    {trial.nodes[number].name}: {lines[-1].strip()}")
    if whole is not None and not problems:
        for stage in trial.stages:
            problems += [f"{stage}: {line}" for line in differences(whole / stage, trial.folder / stage)]
    say(f"{name}: {'; '.join(problems) or 'as it should be'}")
    return bool(problems)


if __name__ == "__main__":
    main()
