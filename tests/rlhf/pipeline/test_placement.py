"""Where ranks run when there are several machines: by a hostfile, by flags on each of them, by Slurm."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf import hardware
from rlhf.memory.cards import main_memory
from rlhf.pipeline import remote
from rlhf.pipeline.config import PipelineConfig
from rlhf.pipeline.gpu_state import gpu_warnings
from rlhf.pipeline.placement import place
from rlhf.pipeline.plan import machine_of
from tests.helpers import hosts as helper

hosts = helper.hosts
Hosts = Callable[..., Path]


@pytest.fixture(autouse=True)
def login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    monkeypatch.setattr(hardware, "accelerators", lambda: 0)
    monkeypatch.setattr(hardware, "cores", lambda: 4)


def problems(path: Path, **settings: int) -> list[str]:
    """What is wrong with the placement of a hostfile, without the file's name."""
    found = place(PipelineConfig(hostfile=path, **settings))[1]  # type: ignore[arg-type]
    start = f"--hostfile {path}: "
    assert all(line.startswith(start) for line in found)
    return [line.removeprefix(start) for line in found]


@pytest.mark.process
def test_a_login_node_plans_for_the_gpus_of_its_hosts(hosts: Hosts) -> None:
    """It planned for CPUs, so that dtype and ZeRO stages were those of CPUs."""
    gpu = {"gpus": 8, "bf16": True}
    placement, wrong = place(PipelineConfig(hostfile=hosts(slots=8, node_a=gpu, node_b=gpu)))
    assert wrong == []
    assert (placement.hosts, placement.nodes, placement.ranks, placement.gpus) == (("node-a", "node-b"), 2, 8, True)
    assert placement.master_addr == "10.0.0.1"  # where ssh found the first; the other nodes may not know its name
    machine = machine_of(placement)
    assert (machine.gpus, machine.bf16, machine.world_size) == (True, True, 16)
    mixed = hosts(slots=8, node_c=gpu, node_d={"gpus": 8, "bf16": False})
    assert not machine_of(place(PipelineConfig(hostfile=mixed))[0]).bf16


@pytest.mark.process
def test_hosts_are_really_asked(hosts: Hosts) -> None:
    placement, wrong = place(PipelineConfig(hostfile=hosts("node-a", "node-b", runs=True), num_gpus=0))
    assert wrong == []
    assert (placement.hosts, placement.master_addr, placement.card) == (("node-a", "node-b"), "10.0.0.1", None)
    assert placement.main_memory == main_memory()


@pytest.mark.process
def test_the_smallest_gpu_of_all_hosts_counts(hosts: Hosts) -> None:
    """A plan that was made on a login node said nothing of memory, and nothing of who else used a GPU."""

    def host(name: str, memory: float, *warnings: str) -> dict[str, object]:
        card = {"name": name, "memory": memory, "tflops": 1.0, "bandwidth": 1.0}
        return {"gpus": 1, "card": card, "main_memory": memory, "warnings": warnings}

    path = hosts(node_a=host("A100", 80e9), node_b=host("T4", 16e9, "GPU 0 is in use"))
    placement = place(PipelineConfig(hostfile=path))[0]
    assert placement.card is not None
    assert (placement.card.name, placement.main_memory) == ("T4", 16e9)
    assert gpu_warnings(placement) == [
        "node-b: GPU 0 is in use",
        "the hosts' GPUs differ (node-a A100, node-b T4): the slowest sets the pace",
    ]
    json.loads(remote.job("step1_sft", [], placement, node_rank=0))  # what a host is told
    on_cpus = place(PipelineConfig(hostfile=path, num_gpus=0))[0]
    assert (on_cpus.card, gpu_warnings(on_cpus)) == (None, [])


@pytest.mark.process
def test_a_single_host_is_still_another_machine(hosts: Hosts) -> None:
    """The run stayed on the machine that it was started from."""
    placement, wrong = place(PipelineConfig(hostfile=hosts(slots=2, node_a={"gpus": 2, "bf16": True})))
    assert (placement.hosts, placement.nodes, placement.ranks, placement.gpus, wrong) == (("node-a",), 1, 2, True, [])
    here = hosts(**{socket.gethostname(): {}})
    assert place(PipelineConfig(hostfile=here))[0].hosts == ()


@pytest.mark.process
def test_hosts_that_cannot_take_part_are_named(hosts: Hosts) -> None:
    path = hosts(
        "node-a",
        silent=("fails", 255, "ssh: connect to host silent port 22: Connection refused"),
        bare=("fails", 127, "sh: 1: exec: env: not found"),
        old={"versions": {"torch": "2.12.0", "source": "0"}},
        blind={"sees": False},
    )
    found = problems(path)
    assert found[0] == (
        "silent does not answer by ssh (ssh: connect to host silent port 22: Connection refused); `ssh silent true` "
        "must work without a password"
    )
    assert found[1].startswith("bare cannot run ")
    assert "(sh: 1: exec: env: not found); install Python and this project under the same paths" in found[1]
    assert found[2].startswith("old and this machine differ: torch 2.12.0 and ")
    assert "the files of this project are not the same; install the same on all nodes" in found[2]
    assert found[3] == f"blind has no folder {Path.cwd()}: all nodes must see the folder of the run under one name"
    assert len(found) == 4


@pytest.mark.process
def test_more_ranks_than_a_host_has(hosts: Hosts) -> None:
    gpus = hosts(slots=8, node_a={"gpus": 8}, node_b={"gpus": 4}, node_c={"gpus": 0})
    assert problems(gpus) == [
        "node-b has 4 GPUs for 8 ranks; correct its slots, or lower --num-gpus",
        "node-c has 0 GPUs for 8 ranks; correct its slots, or lower --num-gpus",
    ]
    cores = hosts(slots=3, node_d={"cores": 2}, node_e={"cores": 3})
    assert problems(cores) == ["node-d has no GPU that can be used, and 2 cores for 3 ranks"]


def test_without_ssh_there_is_no_hostfile(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hosts("node-a", "node-b")
    monkeypatch.setattr("shutil.which", lambda name: None)
    (wrong,) = place(PipelineConfig(hostfile=path))[1]
    assert "starts the other machines by ssh, which is not installed here" in wrong


def test_lines_of_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("node-a slots=4  # the first\n\nnode-a slots=4\nnode-b\n")
    assert [p.partition(", ")[2] for p in place(PipelineConfig(hostfile=path))[1][:2]] == [
        "line 3: node-a is listed twice",
        "line 4: write it as 'host slots=8', not 'node-b'",
    ]
    assert "cannot be read" in place(PipelineConfig(hostfile=tmp_path / "none"))[1][0]


def test_a_port_that_somebody_listens_on() -> None:
    """The ranks waited for each other, and the first died of `address already in use`."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        first = PipelineConfig(num_nodes=2, node_rank=0, master_addr="10.0.0.1", master_port=port)
        assert place(first)[1] == [f"--master-port {port} is in use on this machine; give another one on all nodes"]
        assert place(first.model_copy(update={"node_rank": 1}))[1] == []  # it is the first node's port


def test_a_first_node_whose_name_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks asked for its address until they had waited half an hour."""

    def look_up(host: str, *_: object) -> list[str]:
        if host != "gpu07":
            raise socket.gaierror("Name or service not known")
        return [host]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    node = PipelineConfig(num_nodes=2, node_rank=1, master_addr="gpu70")
    assert place(node)[1] == ["--master-addr gpu70: this machine knows no host of that name; give its address"]
    assert place(node.model_copy(update={"master_addr": "gpu07"}))[1] == []


# --- Slurm -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(hardware, "knows_host", lambda name: name == "gpu07")

    def put(*, tasks: int, nodes: int, node: int = 0) -> None:
        values = {"JOB_ID": 7, "STEP_ID": 0, "PROCID": node, "STEP_NUM_TASKS": tasks, "STEP_NUM_NODES": nodes}
        for name, value in {**values, "NODEID": node, "STEP_NODELIST": "gpu[07-09]"}.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))

    return put


def test_one_train_py_on_each_node_of_a_slurm_step(task: Callable[..., None]) -> None:
    task(tasks=3, nodes=3, node=2)
    placement, wrong = place(PipelineConfig())
    assert wrong == []
    assert (placement.nodes, placement.node_rank, placement.master_addr, placement.first) == (3, 2, "gpu07", False)


def test_several_train_py_on_a_node_are_refused(task: Callable[..., None]) -> None:
    """All of them started, and fought for the folder."""
    task(tasks=8, nodes=2)
    (wrong,) = place(PipelineConfig())[1]
    assert wrong.startswith("srun has started 8 copies of train.py on 2 nodes; start one on each")
    assert "--ntasks-per-node=1" in wrong
