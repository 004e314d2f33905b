"""Two pretended nodes on this machine, and the ways to start a run on them: what `scripts.two_nodes` is made of."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import EXIT_DONE, ConfigError
from rlhf.pipeline.placed import ROOT
from scripts.method_stages import METHODS, packages_of, stages_of
from scripts.nightly_kill import last_step

BRIDGE, NETWORK, PORT = "rlhf-br", "10.77.0", 29611
SILENCE_SECONDS = 30  # RLHF_TIMEOUT_SECONDS of all runs here
LONGEST_SECONDS = 900
_STEPS = {"step1_sft": 12, "step2_reward": 4}  # of other stages 3


def short(method: str) -> list[str]:
    """The demo by a method, cut short: what is tried here does not depend on what is learned."""
    settings = {"prepare.steps": 3, "evaluate.max_prompts": 4, "step1_sft.save_every": 3}
    for stage in packages_of(method):
        settings |= {f"{stage}.max_steps": _STEPS.get(stage, 3), f"{stage}.max_eval_samples": 32}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["--recipe", "demo", "--method", method, "--force", *sets]


@dataclass
class Node:
    """A pretended machine: a network namespace, and the processes that the test started in it."""

    number: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"node-{'ab'[self.number]}"

    @property
    def space(self) -> str:
        return f"rlhf-{self.name}"

    @property
    def outer(self) -> str:
        """The end of its cable that is at the bridge."""
        return f"{self.space}-o"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number + 1}"

    def inside(self, words: Sequence[str]) -> list[str]:
        """The command that runs `words` on this node, with its host name."""
        script = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", script, "sh", *words]

    def start(self, words: Sequence[str], output: Path, **variables: str) -> subprocess.Popen[bytes]:
        with output.open("ab") as file:
            process = subprocess.Popen(
                self.inside(words),
                env=environment() | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def pids(self) -> list[int]:
        """All processes that use this node's network."""
        return [int(pid) for pid in _output("ip", "netns", "pids", self.space).split()]

    def kill(self) -> None:
        """A power cut: every process of the node is gone, and nothing says so on the network."""
        self.link("down")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def link(self, state: str) -> None:
        """Switch the cable between this node and the bridge "up" or "down"."""
        run("ip", "link", "set", self.outer, state)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RLHF_"))}
    kept.pop("GLOO_SOCKET_IFNAME", None)
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS"), "1")
    ours = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "RLHF_TIMEOUT_SECONDS": str(SILENCE_SECONDS)}
    return kept | offline | ours


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _output(*words: str) -> str:
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """The two nodes, joined by a bridge; removed at the end with all that runs in them."""
    nodes = (Node(0), Node(1))
    _remove(nodes)
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "link", "set", BRIDGE, "up")
        for node in nodes:
            outer, inner = node.outer, f"{node.space}-i"
            run("ip", "netns", "add", node.space)
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            run("ip", "link", "set", inner, "netns", node.space)
            run("ip", "link", "set", outer, "master", BRIDGE, "up")
            for words in (
                ("addr", "add", f"{node.address}/24", "dev", inner),
                ("link", "set", inner, "up"),
                ("link", "set", "lo", "up"),
            ):
                run("ip", "-n", node.space, *words)
        yield nodes
    finally:
        _remove(nodes)


def _remove(nodes: Sequence[Node]) -> None:
    for node in nodes:
        for pid in node.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in node.started:
            process.wait()
        _output("ip", "netns", "delete", node.space)
        _output("ip", "link", "delete", node.outer)  # the namespace itself may take some seconds to go
    _output("ip", "link", "delete", BRIDGE)


# --- ways to start ----------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """A run on the two nodes, into `folder`, of the first `count` stages of a method; what each node printed is in
    `said(number)`."""

    nodes: tuple[Node, Node]
    folder: Path
    method: str = METHODS[0]
    count: int | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        return packages_of(self.method)[: self.count]

    def said(self, number: int) -> str:
        path = self.output(number)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def output(self, number: int) -> Path:
        return self.folder.parent / f"{self.folder.name}.{number}.txt"

    def start(
        self,
        number: int,
        *more: str,
        root: Path = ROOT,
        python: Sequence[str] = (sys.executable,),
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start train.py on a node: that of the project in `root`, by the Python in `python`."""
        words = [*python, str(root / "train.py"), "--output-dir", str(self.folder), *short(self.method)]
        words += ["--num-gpus", "1", *more]
        words += ["--stages", ",".join(str(spec.number) for spec in stages_of(self.method)[: self.count])]
        return self.nodes[number].start(words, self.output(number), **(variables or {}))

    def node_rank(self, number: int, **settings: Any) -> subprocess.Popen[bytes]:
        """Start one node in the way of `--node-rank`."""
        flags = ("--num-nodes", "2", "--node-rank", str(number), "--master-addr", self.nodes[0].address)
        return self.start(number, *flags, "--master-port", str(PORT), **settings)

    def both(self) -> list[subprocess.Popen[bytes]]:
        return [self.node_rank(number) for number in range(2)]

    def step(self) -> int:
        """The last step that the first stage has logged."""
        return last_step(self.folder / self.stages[0])


def by_node_rank(trial: Trial) -> list[int]:
    return wait(trial.both())


def by_slurm(trial: Trial) -> list[int]:
    """`srun --ntasks-per-node=1 python train.py`, as far as tasks can see it."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}
    # the first node's name is its address here: these nodes know no names
    step |= {"SLURM_STEP_NODELIST": f"{trial.nodes[0].address},{trial.nodes[1].address}"}
    own = [step | {"SLURM_PROCID": str(number), "SLURM_NODEID": str(number)} for number in range(2)]
    return wait([trial.start(number, variables=own[number]) for number in range(2)])


def by_hostfile(trial: Trial) -> list[int]:
    return wait([from_hostfile(trial)])


def from_hostfile(trial: Trial) -> subprocess.Popen[bytes]:
    """Start all nodes from the first one by ssh, with an sshd on each."""
    keys = trial.folder.parent / "ssh"
    keys.mkdir(exist_ok=True)
    if not (keys / "key").exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "key"))
    Path("/run/sshd").mkdir(exist_ok=True)
    (keys / "sshd").write_text(
        f"HostKey {keys}/key\nAuthorizedKeysFile {keys}/key.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    hosts = "".join(f"Host {node.name}\n  HostName {node.address}\n" for node in trial.nodes)
    (keys / "config").write_text(
        f"{hosts}Host *\n  IdentityFile {keys}/key\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        "  LogLevel ERROR\n"
    )
    (keys / "bin").mkdir(exist_ok=True)
    (keys / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {keys}/config "$@"\n')
    (keys / "bin" / "ssh").chmod(0o755)
    (keys / "hosts").write_text("".join(f"{node.name} slots=1\n" for node in trial.nodes))
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    for node in trial.nodes:
        node.start([sshd, "-D", "-f", str(keys / "sshd")], keys / f"{node.name}.log")
    path = f"{keys / 'bin'}:{os.environ['PATH']}"
    flags = ("--hostfile", str(keys / "hosts"), "--master-port", str(PORT))
    return trial.start(0, *flags, variables={"PATH": path})


def by_torchrun(trial: Trial) -> list[int]:
    """The stages of a run that is prepared already, one after the other."""
    whole = trial.folder.parent / "whole"
    for stage in trial.stages:
        text = (whole / stage / "config.yaml").read_text().replace(f"{whole}/step", f"{trial.folder}/step")
        config = trial.folder.parent / f"{trial.folder.name}.{stage}.yaml"
        config.write_text(text)
        flags = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", trial.nodes[0].address]
        started = []
        for number, node in enumerate(trial.nodes):
            launcher = [sys.executable, "-m", "torch.distributed.run", *flags, "--node-rank", str(number)]
            words = [*launcher, "--master-port", str(PORT), "-m", stage, "--config", str(config)]
            started.append(node.start(words, trial.output(number)))
        if any(codes := wait(started)):
            return codes
    return [EXIT_DONE]


def wait(started: Sequence[subprocess.Popen[bytes]], *, seconds: float = LONGEST_SECONDS) -> list[int]:
    """The exit codes; -9 for what has not ended in time."""
    deadline = time.monotonic() + seconds
    codes = []
    for process in started:
        try:
            codes.append(process.wait(timeout=max(0.1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            codes.append(-9)
    return codes


def until(met: Callable[[], bool], *, seconds: float = LONGEST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise ConfigError(f"nothing has happened for {seconds:.0f} s")
        time.sleep(0.02)


WAYS = {"node-rank": by_node_rank, "torchrun": by_torchrun, "slurm": by_slurm, "hostfile": by_hostfile}
