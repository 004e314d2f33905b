"""The house keeps its shape: imports flow one way, validation needs no torch, and our data/ package is found."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("step1_sft", "step2_reward", "step3_ppo")

# What each package may import of ours, itself aside. `scripts` stands beside train.py: nothing imports it.
ALLOWED = {
    "rlhf": set(),
    "data": {"rlhf"},
    **{stage: {"rlhf", "data"} for stage in STAGES},
    "train": {"rlhf", "data", *STAGES},
    "scripts": {"rlhf", "data", *STAGES, "train"},
}
# `data/` reads and encodes; it neither trains nor generates. Of rlhf.models.loading it takes the tokenizer.
NOT_FOR_DATA = "training generation"

# What answers --help and checks settings: these must be importable without the seconds that torch takes.
TORCH_FREE = {
    "rlhf": "command config console errors files hardware metrics stage stage_config template models.names "
    "pipeline.run pipeline.placement pipeline.plan pipeline.launch report.page report.charts chat.__main__ "
    "chat.session chat.screen chat.conversation evaluate.__main__ evaluate.evaluation evaluate.judges "
    "evaluate.comparison generation.speaker generation.streaming",
    "data": "adapters blend config example preflight sources",
    **dict.fromkeys(STAGES, "config __main__"),
}
HEAVY = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets")


def _modules() -> dict[str, Path]:
    """Dotted name → file, of everything of ours that is importable."""
    files = [f for package in ALLOWED for f in (ROOT / package).rglob("*.py")] + [ROOT / "train.py"]
    names = {f: f.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for f in files if f.exists()}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def _imports(name: str, file: Path) -> set[str]:
    """Absolute names that a file imports anywhere in it, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: line {node.lineno} imports relatively; write the whole name"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_imports_flow_one_way() -> None:
    """rlhf ← data ← step1_sft | step2_reward | step3_ppo ← train.py, and no stage knows another."""
    wrong = []
    for name, file in _modules().items():
        package = name.partition(".")[0]
        for imported in _imports(name, file):
            top = imported.partition(".")[0]
            if top in ALLOWED and top != package and top not in ALLOWED[package]:
                wrong.append(f"{name} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_data_neither_trains_nor_generates() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, file in _modules().items()
        if name.partition(".")[0] == "data"
        for imported in _imports(name, file)
        if imported.startswith("rlhf.") and imported.split(".")[1] in NOT_FOR_DATA.split()
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.process
def test_settings_and_checks_need_no_torch() -> None:
    """One process imports every module that must be light and says which of them first brought something heavy."""
    names = [f"{package}.{m}" for package, modules in TORCH_FREE.items() for m in modules.split()]
    names += ["train", "scripts.run_stage"]
    program = (
        "import importlib, json, sys\n"
        "blame = {}\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        if heavy in sys.modules: blame.setdefault(heavy, name)\n"
        "print(json.dumps(blame))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


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
