"""Which processes are ranks: stages that a launcher started as a group, and nobody else."""

from __future__ import annotations

import pytest

from rlhf import process

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlhf.process._Program.is_rank", True)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_rank_of_a_group(environment) -> None:
    environment(RANK="3", WORLD_SIZE="8", LOCAL_WORLD_SIZE="4", MASTER_ADDR="a", MASTER_PORT="1")
    assert (process.rank(), process.world_size(), process.local_world_size()) == (3, 8, 4)
    assert not process.is_main()
    assert process.launcher_problems() == []
    process.set_is_rank(False)  # the same environment, but the program is no stage
    assert (process.rank(), process.world_size(), process.local_world_size()) == (0, 1, 1)


@pytest.mark.parametrize(
    "left", [{"RANK": "1"}, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": ""}]
)
def test_what_is_left_of_another_launcher_is_ignored(left: dict[str, str], environment) -> None:
    """With RANK=1 in the environment a lone stage was silent, and its error had no cause."""
    environment(**left)
    assert (process.rank(), process.world_size(), process.local_world_size()) == (0, 1, 1)
    assert process.launcher_problems() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 do not go together: ranks count from 0"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one and WORLD_SIZE=2 are not numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "are set, but not MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "are set, but not MASTER_PORT"),
    ],
)
def test_variables_that_contradict_each_other_are_said(values: dict[str, str], message: str, environment) -> None:
    """Such a rank waited for the others until the time was over."""
    environment(**values)
    (found,) = process.launcher_problems()
    assert message in found
    assert "unset RANK and WORLD_SIZE to run one process" in found
