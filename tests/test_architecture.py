"""The house keeps its shape: each rule of tests/helpers/house.py holds, and fails where it is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import house

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[Path], list[str]]


def _marked(rule: Rule) -> list[pytest.MarkDecorator]:
    return [pytest.mark.process] if rule is house.settings_need_no_torch else []  # it starts another Python


@pytest.mark.parametrize("rule", [pytest.param(r, id=r.__name__, marks=_marked(r)) for r in house.RULES])
def test_the_rule_holds(rule: Rule) -> None:
    assert rule(ROOT) == [], rule.__doc__


# --- each rule fails when it is broken --------------------------------------------------------------------------------

BREAKS: list[tuple[Rule, str, str]] = [
    (house.absolute_imports, "data/blend.py", "from .cache import build_once\n"),
    (house.packages_flow_one_way, "rlhf/files.py", "def f():\n    import data.config\n"),
    (house.packages_flow_one_way, "step1_sft/config.py", "from step2_reward.config import RewardConfig\n"),
    (house.packages_flow_one_way, "data/blend.py", "import train\n"),
    (house.packages_flow_one_way, "train.py", "import scripts.learning\n"),
    (house.rooms_know_only_what_they_may, "rlhf/training/engine.py", "from rlhf.models.loading import unwrap\n"),
    (house.rooms_know_only_what_they_may, "rlhf/models/export.py", "import rlhf.generation.sampler\n"),
    (house.rooms_know_only_what_they_may, "rlhf/generation/sampler.py", "from rlhf.pipeline import plan\n"),
    (house.rooms_know_only_what_they_may, "rlhf/stages/spec.py", "def f():\n    from rlhf.pipeline import plan\n"),
    (house.rooms_know_only_what_they_may, "rlhf/memory/phases.py", "from rlhf.stages.spec import StageSpec\n"),
    (house.rooms_know_only_what_they_may, "rlhf/files.py", "from rlhf.training import distributed\n"),
    (house.rooms_know_only_what_they_may, "rlhf/console/text.py", "from rlhf.errors import nearest\n"),
    (house.rooms_know_only_what_they_may, "data/store.py", "from rlhf.generation.sampler import Sampler\n"),
    (house.rooms_know_only_what_they_may, "data/store.py", "from rlhf.training.engine import TrainEngine\n"),
    (house.process_imports_nothing, "rlhf/process.py", "from rlhf.errors import nearest\n"),
    (house.no_circles, "data/row_files.py", "def f():\n    from data.readers import file_rows\n"),
    (house.ground_names_no_torch, "rlhf/files.py", "def f():\n    import torch\n"),
    (house.no_stage_by_name, "rlhf/report/page.py", "LAST = 'step3_ppo'\n"),
    (house.private_attributes_in_one_file, "rlhf/models/export.py", "def f(p):\n    return p.ds_numel\n"),
    (house.files_are_short, "data/blend.py", "x = 1\n" * 300),
    (house.settings_need_no_torch, "data/blend.py", "import torch\n"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, to break a rule in."""
    folder = tmp_path_factory.mktemp("house")
    for package in house.PACKAGES:
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


@pytest.mark.parametrize(
    "rule, file, line", [pytest.param(*b, id=f"{b[0].__name__}-{b[1]}", marks=_marked(b[0])) for b in BREAKS]
)
def test_the_rule_fails_where_it_is_broken(copy: Path, rule: Rule, file: str, line: str) -> None:
    path = copy / file
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{line}", encoding="utf-8")
    try:
        found = rule(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert found, f"{rule.__name__} does not see {line!r} in {file}"


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, _, _ in BREAKS} == set(house.RULES)


@pytest.fixture
def folder_with_data(tmp_path: Path) -> Path:
    """A folder as people have them: it holds a Python package of its own that is called data."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise RuntimeError('this is the data package of somebody else')\n")
    (tmp_path / "data" / "train.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize("script", ["step1_sft", "step2_reward", "step3_ppo"])
def test_a_stage_finds_our_data_package_from_a_folder_with_another(folder_with_data: Path, script: str) -> None:
    """`python -m` puts the working folder first on sys.path, so a data/ package there would hide ours."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / f"{script}.sh"), "--help"],
        cwd=folder_with_data,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--data-path" in done.stdout


def test_tests_mirror_the_tree() -> None:
    """tests/data/test_cache.py tests data/cache.py, and so would test_cache_of_many_ranks.py; what tests several
    packages at once stands in tests/ itself."""
    wrong = []
    for file in (ROOT / "tests").glob("*/**/test_*.py"):
        folder = file.parent.relative_to(ROOT / "tests")
        there = {path.stem for path in (ROOT / folder).glob("*") if path.is_dir() or path.suffix in (".py", ".sh")}
        name = file.stem.removeprefix("test_")
        if not any(name == module or name.startswith(f"{module}_") for module in there):
            wrong.append(f"{file.relative_to(ROOT)}: there is no {folder / name}.py")
    assert not wrong, "\n".join(wrong)
