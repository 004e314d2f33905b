"""scripts/step*.sh answer what is wrong in one line and with exit code 2, before any rank is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf import hardware

pytestmark = pytest.mark.process

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(script: str, *arguments: str, folder: Path, num_gpus: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        cwd=folder,
        env={**environment, "NUM_GPUS": num_gpus},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("num_gpus", ["1", "2"])
def test_unknown_flag_is_answered_with_the_nearest(tmp_path: Path, num_gpus: str) -> None:
    if num_gpus == "2" and hardware.cores() < 2:
        pytest.skip("two ranks need two cores")
    done = run("step2_reward.sh", "--data-pth", "x.jsonl", folder=tmp_path, num_gpus=num_gpus)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such option '--data-pth'")
    assert "--data-path" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_ranks_than_cores_are_refused(tmp_path: Path) -> None:
    ranks = 10 * (os.cpu_count() or 1)
    done = run("step3_ppo.sh", folder=tmp_path, num_gpus=str(ranks))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: NUM_GPUS={ranks}: ") and done.stderr.count("\n") == 1


def test_arguments_with_blanks_arrive_whole(tmp_path: Path) -> None:
    """The missing file is named with its blanks, so the words went through bash unharmed."""
    done = run("step1_sft.sh", "--model", ".", "--data-path", "my data.jsonl", folder=tmp_path, num_gpus="1")
    assert done.returncode == 2
    assert "my data.jsonl does not exist" in done.stderr
