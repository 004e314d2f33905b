"""Tasks of srun as ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf import process, slurm
from tests.helpers.fakes import command_of, make_stage

SECOND_NODE = {
    "SLURM_JOB_ID": "10003",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_the_variables_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, SECOND_NODE)
    assert slurm.rank_variables() == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "20003",
    }
    monkeypatch.delenv("SLURM_STEP_ID")  # a batch script: sbatch sets the same variables for it
    assert slurm.rank_variables() == {}


def test_tasks_of_one_node_need_no_list_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"})
    found = slurm.rank_variables()
    assert (found["RANK"], found["LOCAL_WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")
    put(monkeypatch, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
    assert slurm.rank_variables() == {}


@pytest.mark.parametrize(
    "nodes, first",
    [("gpu[07-09,12]", "gpu07"), ("a,b", "a"), ("rack[1,3]-n[2]", "rack1-n"), ("login", "login"), ("", "")],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_a_stage_that_srun_starts_is_a_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight tasks were eight runs that fought for one folder. RANK, where a launcher set it, counts for more."""
    name = make_stage(tmp_path / "packages", monkeypatch)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for variable in names:
        monkeypatch.setenv(variable, "")  # so that they are as before when the test ends
        monkeypatch.delenv(variable)
    put(monkeypatch, SECOND_NODE)
    with pytest.raises(SystemExit):
        command_of(name).main(["--help"])
    assert (process.rank(), process.world_size(), process.node()) == (5, 7, 1)
    put(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(SystemExit):
        command_of(name).main(["--help"])
    assert (process.rank(), process.world_size(), process.node_count()) == (0, 2, 1)
