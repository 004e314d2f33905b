"""How many ranks run where: from the flags, the hostfile, Slurm and what the machines have."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf import hardware, slurm
from rlhf.memory.cards import Card
from rlhf.pipeline import remote
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.gpu_state import gpu_problems
from rlhf.pipeline.placed import Placement


def place(pipeline: PipelineConfig, *, described: bool = False) -> tuple[Placement, list[str]]:
    """The placement of a run's ranks, and its problems on this machine and, by ssh, on those of the hostfile. On
    machines that are only `described` they have all the GPUs that are asked for, and nothing is looked at."""
    hosts, problems = _hosts(pipeline.hostfile) if pipeline.hostfile else ({}, [])
    nodes, node_rank, master_addr = pipeline.num_nodes or len(hosts) or 1, pipeline.node_rank, pipeline.master_addr
    if hosts and nodes > len(hosts):
        problems.append(
            f"--num-nodes {nodes}: {pipeline.hostfile} lists {len(hosts)} hosts; add hosts or lower --num-nodes"
        )
    if described:
        ranks = pipeline.num_gpus or (min(hosts.values()) if hosts else 1)
        gpus = pipeline.num_gpus != 0
        return Placement(ranks=ranks, gpus=gpus, bf16=gpus, nodes=nodes), problems
    step = slurm.step()
    if step is not None and step.tasks > 1:
        if step.tasks != step.nodes:
            problems.append(
                f"srun has started {step.tasks} copies of train.py on {step.nodes} nodes; start one on each, which "
                "starts the node's ranks: srun --ntasks-per-node=1 --gpus-per-node=8 python train.py …"
            )
        elif nodes == 1:
            nodes, node_rank, master_addr = step.nodes, step.node, step.first_host
    by_ssh = node_rank is None and hosts and (nodes > 1 or not remote.is_here(next(iter(hosts))))
    if by_ssh and not problems:
        return _by_ssh(pipeline, list(hosts)[:nodes], list(hosts.values())[:nodes])
    visible = hardware.accelerators()
    gpus = visible > 0 and pipeline.num_gpus != 0
    ranks = pipeline.num_gpus or (min(hosts.values()) if hosts else visible if gpus else 1)
    problems += _too_many(ranks, visible, gpus)
    problems += gpu_problems() if pipeline.num_gpus != 0 else []
    if nodes > 1 and node_rank == 0 and not hardware.port_is_free(pipeline.master_port):
        problems.append(
            f"--master-port {pipeline.master_port} is in use on this machine; give another one on all nodes"
        )
    if nodes > 1 and master_addr and not hardware.knows_host(master_addr):
        problems.append(f"--master-addr {master_addr}: this machine knows no host of that name; give its address")
    placement = Placement(
        ranks=ranks,
        gpus=gpus,
        bf16=gpus and hardware.bf16_gpus(),
        nodes=nodes,
        node_rank=node_rank if nodes > 1 else None,
        master_addr=(master_addr or "") if nodes > 1 else "",
        master_port=pipeline.master_port,
    )
    return placement, problems


def _by_ssh(pipeline: PipelineConfig, hosts: list[str], slots: list[int]) -> tuple[Placement, list[str]]:
    """The placement on hosts that are reached by ssh. This machine may have no GPU: what counts is what they have."""
    ranks = pipeline.num_gpus or min(slots)
    if not shutil.which("ssh"):
        wrong = (
            "--hostfile without --node-rank starts the other machines by ssh, which is not installed here; install it, "
            "or start train.py on each machine with --node-rank and --master-addr"
        )
        return Placement(ranks=ranks, nodes=len(hosts), hosts=tuple(hosts)), [wrong]
    found, wrong = remote.ask(tuple(hosts), pipeline.master_port, ranks)
    gpus = pipeline.num_gpus != 0 and any(each["gpus"] for each in found.values())
    for host, each in found.items():
        if each["problems"]:
            wrong += [f"{host}: {problem}" for problem in each["problems"]]
        elif gpus and ranks > each["gpus"]:
            wrong.append(f"{host} has {each['gpus']} GPUs for {ranks} ranks; correct its slots, or lower --num-gpus")
        elif not gpus and ranks > each["cores"]:
            wrong.append(f"{host} has no GPU that can be used, and {each['cores']} cores for {ranks} ranks")
    cards = [Card(**each["card"]) for each in found.values() if each["card"]] if gpus else []
    warnings = [f"{host}: {warning}" for host, each in found.items() if gpus for warning in each["warnings"]]
    warnings += _unlike({host: Card(**each["card"]).name for host, each in found.items() if gpus and each["card"]})
    placement = Placement(
        ranks=ranks,
        gpus=gpus,
        warnings=tuple(warnings),
        card=min(cards, key=lambda card: card.memory, default=None),
        main_memory=min((each["main_memory"] for each in found.values()), default=0.0),
        bf16=gpus and all(each["bf16"] for each in found.values()),
        nodes=len(hosts),
        hostfile=pipeline.hostfile,
        hosts=tuple(hosts),
        master_addr=pipeline.master_addr or _first_address(hosts, found),
        master_port=pipeline.master_port,
    )
    return placement, [f"--hostfile {pipeline.hostfile}: {problem}" for problem in wrong]


def _unlike(cards: Mapping[str, str]) -> list[str]:
    """A line when hosts have different GPUs."""
    if len(set(cards.values())) < 2:
        return []
    return [f"the hosts' GPUs differ ({', '.join(map(' '.join, cards.items()))}): the slowest sets the pace"]


def _first_address(hosts: list[str], found: Mapping[str, Mapping[str, Any]]) -> str:
    """The address of the first host: that to which ssh connects, or if it is this machine, from which ssh came to the
    others. Names may be known to ssh alone."""
    caller = next((found[host]["caller"] for host in hosts[1:] if host in found), "")
    own = remote.is_here(hosts[0])
    return (caller if own else found.get(hosts[0], {}).get("address", "")) or hosts[0]


def placement_text(placement: Placement) -> str:
    """`2 CPU ranks, 1 thread each`, `8 GPUs`, `2 nodes × 8 GPUs`."""
    kind = "GPU" if placement.gpus else "CPU rank"
    text = f"{placement.ranks} {kind}{'' if placement.ranks == 1 else 's'}"
    if not placement.gpus:
        threads = hardware.threads(placement.ranks)
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
