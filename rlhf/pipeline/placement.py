"""How many ranks run where: from the flags, the hostfile and what the machine has."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf import hardware
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.launch import Placement


def place(pipeline: PipelineConfig, *, described: bool = False) -> tuple[Placement, list[str]]:
    """The placement of a run's ranks, and its problems on this machine; on one that is only `described` it has all the
    GPUs that are asked for."""
    visible = (pipeline.num_gpus or 1) if described else hardware.accelerators()
    gpus = visible > 0 and pipeline.num_gpus != 0
    hosts, problems = _hosts(pipeline.hostfile) if pipeline.hostfile else ({}, [])
    nodes = pipeline.num_nodes or len(hosts) or 1
    if hosts and nodes > len(hosts):
        problems.append(
            f"--num-nodes {nodes}: {pipeline.hostfile} lists {len(hosts)} hosts; add hosts or lower --num-nodes"
        )
    ranks = pipeline.num_gpus or (min(hosts.values()) if hosts else visible if gpus else 1)
    by_ssh = nodes > 1 and pipeline.node_rank is None
    if by_ssh and pipeline.hostfile and not described and not (shutil.which("pdsh") and shutil.which("ssh")):
        problems.append(
            "--hostfile without --node-rank starts the other machines through pdsh and ssh, which are not installed "
            "here; install them, or start train.py on each machine with --node-rank and --master-addr"
        )
    if not by_ssh:
        problems += _too_many(ranks, visible, gpus)
    placement = Placement(
        ranks=ranks,
        gpus=gpus,
        nodes=nodes,
        node_rank=pipeline.node_rank if nodes > 1 else None,
        hostfile=pipeline.hostfile if nodes > 1 else None,
        master_addr=(pipeline.master_addr or "") if nodes > 1 else "",
        master_port=pipeline.master_port,
    )
    return placement, problems


def placement_text(placement: Placement) -> str:
    """`2 CPU ranks, 1 thread each`, `8 GPUs`, `2 nodes × 8 GPUs`."""
    kind = "GPU" if placement.gpus else "CPU rank"
    text = f"{placement.ranks} {kind}{'' if placement.ranks == 1 else 's'}"
    if not placement.gpus:
        threads = max(1, hardware.cores() // placement.ranks)
        text += f", {threads} {'thread' if threads == 1 else 'threads'} each"
    return text if placement.nodes == 1 else f"{placement.nodes} nodes × {text}"


def _too_many(ranks: int, visible: int, gpus: bool) -> list[str]:
    if gpus and ranks > visible:
        return [f"--num-gpus {ranks}: only {visible} visible here; use --num-gpus {visible}"]
    if not gpus and ranks > hardware.cores():
        idle = hardware.idle_gpus()
        why = f" (there are {idle} GPUs, but the installed torch is built without GPU support)" if idle else ""
        return [
            f"--num-gpus {ranks}: no GPU can be used here{why}, and {hardware.cores()} cores can run one CPU rank "
            f"each; use --num-gpus {hardware.cores()} or less"
        ]
    return []


def _hosts(path: Path) -> tuple[dict[str, int], list[str]]:
    """Host → slots of a hostfile."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"--hostfile {path} cannot be read ({getattr(error, 'strerror', None) or 'not text'})"]
    hosts: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, _, count = words[1].partition("=") if len(words) == 2 else ("", "", "")
        if name != "slots" or not count.isdigit() or int(count) < 1:
            problems.append(f"--hostfile {path}, line {number}: write it as 'host slots=8', not {line.strip()!r}")
        elif words[0] in hosts:
            problems.append(f"--hostfile {path}, line {number}: {words[0]} is listed twice")
        else:
            hosts[words[0]] = int(count)
    if not hosts and not problems:
        problems.append(f"--hostfile {path} lists no host; write lines such as 'host slots=8'")
    return hosts, problems
