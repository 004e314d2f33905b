"""What Slurm's srun tells each task that it starts, read from environment variables. Imports nothing of ours.

A batch script is no task, though sbatch sets the same variables for it: a rank that believed them would wait for others
for ever.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_FIRST_PORT, _PORTS = 20000, 10000


@dataclass(frozen=True)
class Step:
    """A task of a job step: its number of all `tasks` and on this node (`local`), its node's number of all `nodes`, the
    name of the first node, and a port for the job."""

    task: int
    tasks: int
    local: int
    tasks_here: int
    node: int
    nodes: int
    first_host: str
    port: int


def step() -> Step | None:
    """The step whose task this process is; None if srun has not started it."""
    task, tasks = _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    in_batch_script = "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ
    if task is None or tasks is None or in_batch_script:
        return None
    nodes = _number("SLURM_STEP_NUM_NODES", "SLURM_NNODES") or 1
    node = _number("SLURM_NODEID") or 0
    here = _per_node(_text("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"))
    return Step(
        task=task,
        tasks=tasks,
        local=_number("SLURM_LOCALID") or 0,
        tasks_here=here[node] if node < len(here) else max(1, tasks // nodes),
        node=node,
        nodes=nodes,
        first_host=first_host(_text("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")),
        # the same on all nodes, another one for each job
        port=_FIRST_PORT + (_number("SLURM_JOB_ID") or 0) % _PORTS,
    )


def rank_variables() -> dict[str, str]:
    """The variables of a launcher, for a task of a step that has several; empty for other processes."""
    found = step()
    if found is None or found.tasks == 1:
        return {}
    address = found.first_host if found.nodes > 1 else "127.0.0.1"
    return {
        "RANK": str(found.task),
        "WORLD_SIZE": str(found.tasks),
        "LOCAL_RANK": str(found.local),
        "LOCAL_WORLD_SIZE": str(found.tasks_here),
        **({"MASTER_ADDR": address} if address else {}),
        "MASTER_PORT": str(found.port),
    }


def first_host(nodes: str) -> str:
    """The first node of a list in Slurm's way of writing: "gpu[07-09,12],login" → "gpu07"."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def _per_node(text: str) -> list[int]:
    """ "4(x2),3" → [4, 4, 3]"""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


def _text(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _number(*names: str) -> int | None:
    text = _text(*names)
    return int(text) if text.isascii() and text.isdigit() else None
