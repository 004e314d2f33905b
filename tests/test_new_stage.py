"""A stage of one's own is a folder and one row: the plan, the run, the resume and the report know it from its SPEC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import train
from rlhf.metrics import read_metrics
from rlhf.pipeline.command import pipeline_command
from rlhf.report.page import render
from rlhf.stages.result import read_result
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import spec_of

machine, inputs = calls.machine, calls.inputs

CONFIG = """
from rlhf.config import setting
from rlhf.stage_config import RunSettings

class CountConfig(RunSettings):
    '''Counts the weights of the actor.'''

    help_groups = {"Counting": ("actor_model", "times")}
    actor_model: str = setting("", "model whose files are counted")
    times: int = setting(6, "number of counts", ge=1)
"""
SPEC = """
from rlhf.stages.spec import Chart, Headline, Layout, ModelInput, StageSpec
from step9_count.config import CountConfig

def problems(config, models, machine):
    wide = models.get("actor_model", {}).get("hidden_size", 0) > 4096
    return ["step9_count: the model is too wide to be counted"] if wide else []

SPEC = StageSpec(
    number=9,
    package="step9_count",
    config_class=CountConfig,
    problems=problems,
    inputs=(ModelInput("actor_model", "language", "an actor", flags=("sft_model",), made_as="sft"),),
    layout=Layout(
        "Stage 9: counting",
        "count",
        (Chart("Files", ("count/files",), "in the model's folder", floor=0),),
        results={"count/files": "files"},
        headlines=(Headline("files counted", "count/files", before="count/files_before"),),
    ),
    process_group=False,
)
"""
MAIN = """
import json, os, time
from pathlib import Path
from rlhf.console import progress, say
from rlhf.files import write_json
from rlhf.metrics import MetricsLog
from rlhf.stages.result import StageResult

def run(config):
    state = config.output_dir / "state.json"
    start = json.loads(state.read_text())["step"] if state.exists() else 0
    if start:
        say(f"resumed after count {start}")
    log = MetricsLog(config.output_dir, resume_step=start if start else None)
    with log, progress("count", total=config.times, start=start) as bar:
        for step in range(start + 1, config.times + 1):
            files = len(list(Path(config.actor_model).iterdir()))
            log.log(step, {"count/files": files})
            write_json(state, {"step": step})
            bar.update(step)
            if step == 3 and os.environ.get("COUNT_SLOWLY"):
                time.sleep(600)
    return StageResult(metrics={"count/files_before": 0.0, "count/files": float(files)})
"""
COMMAND = """
from rlhf.stages.command import stage_command
from step9_count.spec import SPEC

main = stage_command(SPEC)
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stage's package, importable here and in processes started from here."""
    package = tmp_path / "packages" / "step9_count"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "config": CONFIG, "spec": SPEC, "main": MAIN, "__main__": COMMAND}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    root = str(Path(train.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(package.parent)]))
    for name in [name for name in sys.modules if name.startswith("step9_count")]:
        monkeypatch.delitem(sys.modules, name)
    return package


PROGRAM = """
import sys, train
from rlhf.pipeline.command import pipeline_command
from step9_count.spec import SPEC

pipeline_command("train.py", [*train.STAGES, SPEC], help="")()
"""
WORDS = ["--stages", "9", "--sft-model", "model", "--output-dir", "out"]


def test_plan_run_resume_and_report(stage: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = pipeline_command("train.py", [*train.STAGES, spec_of("step9_count")], help="")
    planned = run(*inputs, "--set", "step9_count.times=4", "--dry-run", command=command)
    assert planned.exit_code == 0, planned.output
    assert "[9] step9_count" in planned.stdout
    assert "actor_model: out/step1_sft/model" in planned.stdout  # what stage 1 will make

    monkeypatch.setenv("COUNT_SLOWLY", "1")
    begun = subprocess.Popen([sys.executable, "-c", PROGRAM, *WORDS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = Path("out/step9_count/metrics.jsonl")
    deadline = time.monotonic() + 60
    while (not metrics.exists() or metrics.read_text().count("\n") < 3) and time.monotonic() < deadline:
        assert begun.poll() is None, begun.communicate()
        time.sleep(0.05)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(timeout=60) == 143
    monkeypatch.delenv("COUNT_SLOWLY")

    done = run(*WORDS, command=command)
    assert done.exit_code == 0, done.output
    assert "resumed after count 3" in done.stdout
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 3, 4, 5, 6]
    result = read_result(Path("out/step9_count"))
    assert result is not None
    assert result.metrics["count/files"] == 3
    again = run(*WORDS, command=command)
    assert "step9_count: finished before" in again.stdout
    assert yaml.safe_load(Path("out/pipeline.yaml").read_text())["step9_count"]["times"] == 6

    page = render(Path("out"))
    for part in ("Stage 9: counting", "Files", "files counted"):
        assert part in page, part


def test_its_own_problems_are_found_with_the_plan(stage: Path, inputs: list[str], tmp_path: Path) -> None:
    command = pipeline_command("train.py", [*train.STAGES, spec_of("step9_count")], help="")
    text = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(text.replace("{", '{"hidden_size": 8192, ', 1))
    refused = run(*inputs, "--dry-run", command=command)
    assert refused.exit_code == 2
    assert "error: step9_count: the model is too wide to be counted" in refused.stderr
