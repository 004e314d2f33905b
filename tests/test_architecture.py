"""The house keeps its shape: imports flow one way, validation needs no torch, and our data/ package is found."""

from __future__ import annotations

import ast
import json
import os
import re
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
# Between rooms: package → what none of its modules may import. `data/` reads and encodes; it neither trains nor
# generates, and of rlhf.models.loading it takes the tokenizer.
NOT_FOR = {
    "data": "rlhf.training rlhf.generation",
    "rlhf.training": "rlhf.models rlhf.generation rlhf.pipeline",
    "rlhf.models": "rlhf.generation rlhf.pipeline",
    "rlhf.generation": "rlhf.pipeline",
}
# Package → all that its modules may import of rlhf, itself aside. `rlhf.process` is the leaf that imports nothing.
ONLY = {
    "rlhf.console": "rlhf.process",
    "rlhf.process": "",
}

# What DeepSpeed does not promise to keep has one reader.
ZERO_INTERNALS = "rlhf.training.zero_internals"
PRIVATE_TO_DEEPSPEED = re.compile(
    r"\b(ds_id|ds_shape|ds_numel|ds_tensor|_hp_mapping|lp_fragment_address|hp_fragment_address|grad_position"
    r"|get_param_id|fp32_partitioned_groups_flat|single_partition_of_fp32_groups|averaged_gradients|all_grad_tensors"
    r"|accumulated_grads_in_cpu|micro_step_id|cur_scale|optimizer\.optimizer|optimizer\.loss_scaler|__compatible_ops__)\b"
)

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


def _is_in(name: str, packages: str) -> bool:
    """Whether a dotted name is one of `packages` (written with spaces between them) or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages.split())


def test_rooms_know_only_what_they_may() -> None:
    wrong = []
    for name, file in _modules().items():
        for imported in _imports(name, file):
            wrong += [
                f"{name} imports {imported}"
                for room, others in NOT_FOR.items()
                if _is_in(name, room) and _is_in(imported, others)
            ]
            wrong += [
                f"{name} imports {imported}"
                for room, others in ONLY.items()
                if _is_in(name, room) and _is_in(imported, "rlhf") and not _is_in(imported, f"{room} {others}")
            ]
    assert not wrong, "\n".join(wrong)


def test_deepspeeds_private_attributes_are_named_in_one_file() -> None:
    """Another release of DeepSpeed means reading one file against it, not the whole project."""
    wrong = [
        f"{name}, line {number}: {line.strip()}"
        for name, file in _modules().items()
        if name != ZERO_INTERNALS and name.partition(".")[0] in ("rlhf", "data", *STAGES)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE_TO_DEEPSPEED.search(line)
    ]
    assert not wrong, "\n".join(wrong)


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
