"""The column of tensor parallelism: two ranks over gloo on this machine, which go through all families together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf.hardware import free_port

PATIENCE = "120"  # seconds that a rank waits for the other


def parallel_cells(names: Sequence[str], shared: Path) -> dict[str, Any]:
    """A cell for each family. `shared` is the folder in which their models lie, from `Bench.cells`."""
    if not names:
        return {}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    port = str(free_port())
    ranks = [context.Process(target=_rank, args=(rank, port, list(names), shared, theirs)) for rank in range(2)]
    try:
        for process in ranks:
            process.start()
        theirs.close()
        return _cells(ours, names, ranks[0])
    finally:
        for process in ranks:
            process.join(10)
            if process.is_alive():
                process.kill()


def _cells(end: Connection, names: Sequence[str], first: Any) -> dict[str, Any]:
    """What rank 0 says of the families, one after another; a family that ended it is told from those behind it."""
    from scripts.family_bench import WRONG, Cell

    cells: dict[str, Any] = {}
    try:
        for name in names:
            cells[name] = end.recv()
    except EOFError:
        first.join(10)
        lost = names[len(cells)]
        cells[lost] = Cell(WRONG, f"the ranks ended with exit code {first.exitcode}")
        cells |= {name: Cell(WRONG, f"not tried: the ranks ended at {lost}") for name in names[len(cells) :]}
    return cells


def _rank(rank: int, port: str, names: list[str], shared: Path, end: Connection) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port, RLHF_TIMEOUT_SECONDS=PATIENCE,
    )  # fmt: skip
    from rlhf.training import distributed
    from scripts.family_bench import PARALLEL, WRONG, Bench
    from scripts.family_checks import tried
    from scripts.family_configs import FAMILIES
    from scripts.family_plain import quiet

    with quiet():
        distributed.init(0)
        for name in names:
            cell = tried(Bench(FAMILIES[name], shared), PARALLEL)
            # a rank that failed alone must not leave the other behind
            cells = distributed.gather_objects(cell)
            if rank == 0:
                end.send(next((one for one in cells if one.state == WRONG), cell))
        distributed.barrier()
    end.close()
    os._exit(0)  # the interpreter's own exit can abort inside the communication library
