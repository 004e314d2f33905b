"""The rules of the house as functions: root of the project → the lines in which it is broken."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

STAGES = ("step1_sft", "step2_dpo", "step2_reward", "step3_ppo")
LONGEST_FILE = 350  # lines

# Our packages that each package may import, itself aside. `scripts` stands beside train.py: nothing imports it.
PACKAGES: dict[str, set[str]] = {
    "rlhf": set(),
    "data": {"rlhf"},
    **{stage: {"rlhf", "data"} for stage in STAGES},
    "train": {"rlhf", "data", *STAGES},
    "scripts": {"rlhf", "data", *STAGES, "train"},
}
# The rooms of rlhf/: what each may import of the others. The ground (modules directly in rlhf/) may be used by all of
# them but the console, which knows rlhf.process alone.
ROOMS: dict[str, set[str]] = {
    "console": set(),
    "training": {"console"},
    "models": {"console", "training"},
    "generation": {"console", "training", "models"},
    "memory": {"models.names"},
    "stages": {"console", "memory", "models.names", "models.fetching", "training"},
    "chat": {"console", "models", "generation", "training"},
    "rewards": {"console"},
    "evaluate": {"console", "models", "generation", "training", "rewards"},
    "report": {"console", "stages", "evaluate"},
    "pipeline": {"console", "memory", "models", "stages", "evaluate", "report", "rewards.settings"},
}
GROUND_MAY_IMPORT = {"console"}
# `data/` reads and encodes; it neither trains nor generates. Of rlhf/models it takes the tokenizer, inside functions,
# and padding.
DATA_MAY_IMPORT = {"console", "models.loading", "models.tensors"}

# Parts of DeepSpeed that may change are read in one file, which names the release.
ZERO_INTERNALS = "rlhf.training.zero_internals"
PRIVATE_TO_DEEPSPEED = re.compile(
    r"\b(ds_id|ds_shape|ds_numel|ds_tensor|_hp_mapping|lp_fragment_address|hp_fragment_address|grad_position"
    r"|get_param_id|fp32_partitioned_groups_flat|single_partition_of_fp32_groups|averaged_gradients|all_grad_tensors"
    r"|accumulated_grads_in_cpu|micro_step_id|cur_scale|optimizer\.optimizer|optimizer\.loss_scaler|__compatible_ops__)\b"
)
# Files that name stages because they are about these stages, and nothing else in rlhf/ does.
STAGE_NAMES = re.compile(r"\bstep[0-9]_\w+")

# What answers --help and checks settings: these must be importable without the seconds that torch takes.
TORCH_FREE = {
    "rlhf": "process command config console errors files hardware json_lines metrics nvml rendering slurm stage_config "
    "template versions memory.phases memory.effort memory.ladder memory.cards memory.known "
    "stages.command stages.problems stages.spec models.names models.families models.weights models.fetching "
    "pipeline.command pipeline.run pipeline.placement "
    "pipeline.plan pipeline.launch pipeline.node pipeline.memory report.page report.charts chat.__main__ chat.session "
    "chat.screen "
    "chat.conversation evaluate.__main__ evaluate.evaluation evaluate.judges evaluate.comparison evaluate.rewards "
    "rewards.names rewards.settings rewards.functions rewards.worker rewards.checks rewards.signature "
    "generation.speaker generation.streaming",
    "data": "adapters blend config contents example hub kept preflight readers sources",
    **dict.fromkeys(STAGES, "config spec __main__"),
    "scripts": "run_stage",
}
HEAVY = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file, of everything of ours that is importable."""
    files = [f for package in PACKAGES for f in (root / package).rglob("*.py")] + [root / "train.py"]
    names = {f: f.relative_to(root).with_suffix("").as_posix().replace("/", ".") for f in files if f.exists()}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imports(file: Path) -> set[str]:
    """Absolute names that a file imports anywhere in it, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)
    return found


def absolute_imports(root: Path) -> list[str]:
    """Imports write the whole name."""
    return [f"{n} imports {i}" for n, f in modules(root).items() for i in sorted(imports(f)) if i.startswith(".")]


def packages_flow_one_way(root: Path) -> list[str]:
    """rlhf ← data ← step1_sft | step2_dpo | step2_reward | step3_ppo ← train.py, and no stage knows another."""
    wrong = []
    for name, file in modules(root).items():
        package = name.partition(".")[0]
        for imported in sorted(imports(file)):
            top = imported.partition(".")[0]
            if top in PACKAGES and top != package and top not in PACKAGES[package]:
                wrong.append(f"{name} imports {imported}")
    return wrong


def rooms_know_only_what_they_may(root: Path) -> list[str]:
    """Each room of rlhf/, its ground and data/ import only the rooms that the tables above allow."""
    wrong = []
    for name, file in modules(root).items():
        parts = name.split(".")
        if parts[0] == "data":
            allowed = DATA_MAY_IMPORT
        elif parts[0] == "rlhf" and len(parts) > 1:
            allowed = {*ROOMS[parts[1]], parts[1]} if parts[1] in ROOMS else GROUND_MAY_IMPORT
        else:
            continue
        for imported in sorted(i for i in imports(file) if i.startswith("rlhf.")):
            inside = imported.removeprefix("rlhf.")
            is_room = inside.split(".")[0] in ROOMS
            if is_room and not any(f"{inside}.".startswith(f"{room}.") for room in allowed):
                wrong.append(f"{name} imports {imported}")
            if parts[1:2] == ["console"] and not is_room and inside.split(".")[0] != "process":
                wrong.append(f"{name} imports {imported}")
    return wrong


def process_imports_nothing(root: Path) -> list[str]:
    """rlhf/process.py is the leaf that everything may import."""
    found = imports(root / "rlhf" / "process.py")
    return [f"rlhf.process imports {name}" for name in sorted(found) if name.split(".")[0] in PACKAGES]


def no_circles(root: Path) -> list[str]:
    """No imports go in a circle. Those inside functions count: they only hide a circle, of which no part can be
    understood alone."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        # "from data.hub import hub_rows" names data.hub.hub_rows, which is not a module: data.hub is meant
        meant = {i if i in known else i.rpartition(".")[0] for i in imports(file)}
        graph[name] = (meant & known.keys()) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def ground_names_no_torch(root: Path) -> list[str]:
    """Neither the ground of rlhf/ nor the console imports a heavy library, function bodies aside for trackers."""
    wrong = []
    for name, file in modules(root).items():
        parts = name.split(".")
        if (
            parts[0] == "rlhf"
            and (len(parts) == 2 or parts[1:2] == ["console"])
            and parts[1] not in ROOMS.keys() - {"console"}
        ):
            heavy = {i for i in imports(file) if i.split(".")[0] in HEAVY} - HEAVY_EXCUSED.get(name, set())
            wrong += [f"{name} imports {imported}" for imported in sorted(heavy)]
    return wrong


# The trackers of accelerate are brought when a run asks for one; template.py is given a tokenizer, so transformers is
# loaded by then.
HEAVY_EXCUSED = {
    "rlhf.metrics": {"accelerate.tracking.TensorBoardTracker", "accelerate.tracking.WandBTracker"},
    "rlhf.template": {
        "transformers.PreTrainedTokenizerBase",
        "transformers.utils.chat_template_utils.encode_marked_chat",
        "transformers.utils.chat_template_utils.mark_control_tokens",
    },
}


def no_stage_by_name(root: Path) -> list[str]:
    """Nothing in rlhf/ knows a stage by name: stages are values (rlhf/stages/spec.py)."""
    wrong = []
    for name, file in modules(root).items():
        if name.partition(".")[0] == "rlhf":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            documentation = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            wrong += [
                f"{name}, line {node.lineno}: {node.value!r}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
                if STAGE_NAMES.search(node.value)
            ]
    return wrong


def private_attributes_in_one_file(root: Path) -> list[str]:
    """Another release of DeepSpeed means reading one file against it, not the whole project."""
    return [
        f"{name}, line {number}: {line.strip()}"
        for name, file in modules(root).items()
        if name != ZERO_INTERNALS and name.partition(".")[0] in ("rlhf", "data", *STAGES)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE_TO_DEEPSPEED.search(line)
    ]


def files_are_short(root: Path) -> list[str]:
    """A file is read in one sitting."""
    files = [*modules(root).values(), *(root / "tests").rglob("*.py")]
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    return [f"{f.relative_to(root)} has {n} lines" for f, n in sorted(lengths.items()) if n > LONGEST_FILE]


def settings_need_no_torch(root: Path) -> list[str]:
    """One process imports every module that must be light and reports which of them first brought something heavy."""
    names = ["train"] + [f"{package}.{m}" for package, listed in TORCH_FREE.items() for m in listed.split()]
    program = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "blame = {}\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        if heavy in sys.modules: blame.setdefault(heavy, name)\n"
        "print(json.dumps(blame))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    blame: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return [f"{name} brings {heavy}" for heavy, name in blame.items()]


RULES: tuple[Callable[[Path], list[str]], ...] = (
    absolute_imports,
    packages_flow_one_way,
    rooms_know_only_what_they_may,
    process_imports_nothing,
    no_circles,
    ground_names_no_torch,
    no_stage_by_name,
    private_attributes_in_one_file,
    files_are_short,
    settings_need_no_torch,
)
