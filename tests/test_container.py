"""What the Dockerfile puts into an image: enough to run train.py, and no more than that."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The folder that `COPY . .` makes."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]

    def left_out(folder: str, names: list[str]) -> set[str]:
        here = patterns if Path(folder) == ROOT else anywhere
        return {name for name in names for pattern in here if fnmatch.fnmatch(name, pattern)}

    shutil.copytree(ROOT, tmp_path / "image", ignore=left_out)
    return tmp_path / "image"


def test_train_runs_in_the_image(image: Path, tmp_path: Path) -> None:
    """From another folder, as an entry point does, and without the packages that only tests need."""
    assert not (image / "tests").exists() and not (image / ".git").exists()
    (words,) = re.findall(r'^ENTRYPOINT \["python", "(.*)"\]$', DOCKERFILE, re.MULTILINE)
    (folder,) = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)[:1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = str(image / Path(words).relative_to(folder))
    done = subprocess.run(
        [sys.executable, script, "--recipe", "opt-66b", "--num-gpus", "8", "--gpu-memory", "80", "--dry-run"],
        cwd=tmp_path, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step3_ppo: GB on each GPU" in done.stdout


def test_the_packages_of_the_image_are_those_of_the_project(image: Path) -> None:
    """They are installed before the project is copied, so that a change of it does not fetch them again."""
    (code,) = re.findall(r'^RUN python -c "(.*)" \\$', DOCKERFILE, re.MULTILINE)
    for name in re.findall(r"^COPY (.*) \./$", DOCKERFILE, re.MULTILINE)[0].split():
        assert (image / name).is_file()
    done = subprocess.run([sys.executable, "-c", code], cwd=image, capture_output=True, text=True)
    names = {re.split(r"[>=<]", line)[0] for line in done.stdout.splitlines()}
    assert {"torch", "transformers", "deepspeed", "peft"} <= names, done.stderr
    pinned = {
        line.partition("==")[0].replace("_", "-") for line in (image / "constraints.txt").read_text().splitlines()
    }
    assert {name.lower() for name in names} <= {name.lower() for name in pinned}
    readme = re.findall(r'^readme = "(.*)"$', (image / "pyproject.toml").read_text(), re.MULTILINE)
    assert readme and (image / readme[0]).is_file()
