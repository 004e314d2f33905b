"""Where the ranks of a run are, and how their failure is told. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import RLHFError
from rlhf.memory.cards import Card

ROOT = Path(__file__).resolve().parents[2]


class RankFailed(RLHFError):
    """A rank ended with an error; the text is its last error lines. `exit_code` is 2 if the user can fix it."""

    def __init__(self, problems: Sequence[str], exit_code: int) -> None:
        super().__init__("\n".join(problems))
        self.problems, self.exit_code = list(problems), exit_code


@dataclass(frozen=True)
class Placement:
    """Where ranks run: `ranks` on each of `nodes`. With `node_rank` each node starts its own; without, the ranks of all
    `hosts` are started from here by ssh."""

    ranks: int = 1
    gpus: bool = False
    nodes: int = 1
    node_rank: int | None = None
    hostfile: Path | None = None
    hosts: tuple[str, ...] = ()
    card: Card | None = None  # the smallest GPU of all hosts
    main_memory: float = 0.0  # bytes of the host that has least
    warnings: tuple[str, ...] = ()  # what the hosts say of their GPUs
    bf16: bool = False  # whether the GPUs of all nodes compute in bf16
    master_addr: str = ""
    master_port: int = 29500

    @property
    def world_size(self) -> int:
        return self.ranks * self.nodes

    @property
    def alone(self) -> Placement:
        """One process for what is no stage, on the first of the hosts: this machine may have no GPU."""
        return Placement(gpus=self.gpus, bf16=self.bf16, hostfile=self.hostfile, hosts=self.hosts[:1])

    @property
    def first(self) -> bool:
        """Whether this node writes the run's folder."""
        return not self.node_rank
