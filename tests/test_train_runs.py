"""train.py: what runs can be stopped and goes on, says what came out or what failed, and is not taken for another."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from rlhf.pipeline.command import pipeline_command
from rlhf.pipeline.launch import ROOT
from rlhf.stages.result import read_result
from tests.helpers import calls
from tests.helpers.calls import run
from tests.helpers.fakes import make_model, make_stage, spec_of

pytestmark = pytest.mark.process

Invoke = Callable[..., Result]
machine = calls.machine


# --- runs, with stages that train nothing -----------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`pipeline("--set", "{1}.steps=2")` runs three fake stages into out/; {1}, {2}, {3} are their names."""
    packages = [make_stage(tmp_path / "packages", monkeypatch, number=number) for number in (1, 2, 3)]
    command = pipeline_command("train.py", [spec_of(name) for name in packages], help="")
    monkeypatch.setattr("rlhf.pipeline.closing._report", lambda output: None)
    make_model(tmp_path / "model")

    def invoke(*words: str) -> Result:
        given = ["--output-dir", "out", "--reward-model", "model", "--set", f"{packages[0]}.model=model", *words]
        return run(*(word.format("", *packages) for word in given), command=command)

    invoke.packages = packages  # type: ignore[attr-defined]
    return invoke


def test_three_stages_run_and_what_came_out_is_said(pipeline: Invoke) -> None:
    done = pipeline("--num-gpus", "2", "--price-per-gpu-hour", "36")
    assert done.exit_code == 0, done.output
    one, two, three = pipeline.packages  # type: ignore[attr-defined]
    for name in (one, two, three):
        assert {"config.yaml", "metrics.jsonl", "log.txt", "done.json"} <= {p.name for p in Path("out", name).iterdir()}
    assert re.search(rf"\[1/3\] {one}: model, 2 CPU ranks", done.stdout)
    assert "counting 3/3 step, fake/loss 0.3333" in done.stdout
    assert "cost" in done.stdout
    assert f"out/{three}/actor" in done.stdout
    assert done.stdout.rstrip().endswith(f"chat:   python -m rlhf.chat out/{three}/actor")
    record = yaml.safe_load(Path("out/pipeline.yaml").read_text())
    assert record[one]["model"] == "model"
    assert "output_dir" not in record[one]
    assert record["run"]["versions"]["python"]


def test_a_home_with_a_blank_in_its_name(pipeline: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat command broke at the blank; `--output-dir=~/…` made a folder named ~. RANK=1, set by a cluster, must not
    make train.py silent."""
    monkeypatch.setenv("HOME", str(tmp_path / "it's home"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = pipeline("--output-dir=~/my runs")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "it's home" / "my runs"
    assert not Path("~").exists()
    last = done.stdout.rstrip().splitlines()[-1].removeprefix("chat:   ")
    assert shlex.split(last) == ["python", "-m", "rlhf.chat", str(folder / pipeline.packages[2] / "actor")]  # type: ignore[attr-defined]


def test_a_failure_names_its_cause_and_the_command_that_continues(
    pipeline: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--overwrite", "--output-dir", "out", "--set", "a.b=c d"])
    Path("broken").touch()
    setting = "{2}.do=if step == 2 and Path('broken').exists(): raise RuntimeError('the cat')"
    failed = pipeline("--set", setting)
    assert failed.exit_code == 1
    one, two, three = pipeline.packages  # type: ignore[attr-defined]
    assert failed.stderr.splitlines() == [
        f"error: {two}: RuntimeError: the cat",
        f"  its log: out/{two}/log.txt",
        "  to continue: python train.py --output-dir out --set 'a.b=c d'",
    ]
    assert "Traceback" in Path("out", two, "log.txt").read_text()
    assert not Path("out", three).exists()

    Path("broken").unlink()
    first = Path("out", one, "metrics.jsonl").stat().st_mtime_ns
    again = pipeline("--set", setting)
    assert again.exit_code == 0, again.output
    assert f"[1/3] {one}: finished before" in again.stdout
    assert Path("out", one, "metrics.jsonl").stat().st_mtime_ns == first


def test_other_settings_are_refused_with_the_difference_and_overwrite_starts_anew(pipeline: Invoke) -> None:
    two_stages = ("--stages", "1,2")
    assert pipeline(*two_stages, "--set", "{1}.steps=2").exit_code == 0
    one = pipeline.packages[0]  # type: ignore[attr-defined]
    refused = pipeline(*two_stages, "--set", "{1}.steps=4", "--set", "{2}.steps=5")
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    assert len(lines) == 2
    assert f"out/{one} holds a run of {one} with other settings (steps: 2 → 4)" in lines[0]
    assert "(steps: 3 → 5)" in lines[1]
    allowed = pipeline(*two_stages, "--set", "{1}.steps=2", "--num-gpus", "2", "--set", "{2}.note=may change")
    assert allowed.exit_code == 0, allowed.output
    anew = pipeline("--stages", "1", "--set", "{1}.steps=4", "--overwrite")
    assert anew.exit_code == 0, anew.output
    result = read_result(Path("out", one))
    assert result is not None
    assert result.metrics == {"fake/loss": 0.25}


def test_a_stage_without_its_marker_is_not_finished(pipeline: Invoke) -> None:
    """Exit code 0 alone is not believed: a launcher may report it for ranks that were lost."""
    failed = pipeline("--set", "{1}.do=os._exit(0)")
    assert failed.exit_code == 1
    assert "ended without its completion marker" in failed.stderr


def test_a_preparation_brings_models_and_is_kept(pipeline: Invoke, tmp_path: Path) -> None:
    one = pipeline.packages[0]  # type: ignore[attr-defined]
    (tmp_path / "packages" / "prepare_it.py").write_text(
        "import json, sys, pathlib\n"
        "open('calls', 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "print('working')\n"
        "print(json.dumps({'actor_model': 'model', 'data_path': ['x.jsonl']}))\n"
    )
    Path("mine.yaml").write_text("prepare: {module: prepare_it, size: 3, quick: true}\n")
    done = pipeline("--recipe", "mine.yaml")
    assert done.exit_code == 0, done.output
    assert Path("calls").read_text() == "--output-dir out/prepare --size 3 --quick\n"
    assert yaml.safe_load(Path("out/pipeline.yaml").read_text())["pipeline"]["data_path"] == ["x.jsonl"]
    assert "working" in Path("out/prepare/log.txt").read_text()
    again = pipeline("--recipe", "mine.yaml")
    assert again.exit_code == 0, again.output
    assert Path("calls").read_text().count("\n") == 1
    refused = pipeline("--recipe", "mine.yaml", "--set", "prepare.size=4")
    assert refused.exit_code == 2
    assert "was prepared with other settings" in refused.stderr
    assert read_result(Path("out", one)) is not None


def test_a_preparation_that_brings_nothing_is_a_mistake(pipeline: Invoke, tmp_path: Path) -> None:
    (tmp_path / "packages" / "prepare_nothing.py").write_text("print('done')\n")
    Path("mine.yaml").write_text("prepare: {module: prepare_nothing}\n")
    ended = pipeline("--recipe", "mine.yaml")
    assert ended.exit_code == 2
    assert "returned nothing; its last line must be a JSON object" in ended.stderr


def test_the_record_of_a_run_is_a_recipe(pipeline: Invoke) -> None:
    """Another run with the same settings, elsewhere: --recipe out/pipeline.yaml."""
    assert pipeline("--stages", "1", "--set", "{1}.steps=2").exit_code == 0
    one = pipeline.packages[0]  # type: ignore[attr-defined]
    again = pipeline("--stages", "1", "--recipe", "out/pipeline.yaml", "--output-dir", "other")
    assert again.exit_code == 0, again.output
    result = read_result(Path("other", one))
    assert result is not None
    assert result.metrics == {"fake/loss": 0.5}


# --- as a process ----------------------------------------------------------------------------------------------------


def test_train_as_a_process_answers_without_torch_and_with_its_exit_code(tmp_path: Path) -> None:
    """In a folder of its own: beside the output of a demo, train.py goes on with that recipe."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(ROOT / 'train.py')!r}, '--actor-model', 'nowhere/at/all', '--data-path', 'none.jsonl']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert ended.stdout == "2 []\n", ended.stderr
    assert all(line.startswith("error: ") for line in ended.stderr.splitlines())


_FAKE_TRAIN = """
import sys
from rlhf.pipeline.command import pipeline_command
from tests.helpers.fakes import spec_of

specs = [spec_of(name) for name in sys.argv[1].split(",")]
sys.argv[:2] = ["train.py"]
pipeline_command("train.py", specs, help="")()
"""


def test_sigterm_ends_the_ranks_and_names_the_command_that_continues(pipeline: Invoke, tmp_path: Path) -> None:
    """A scheduler's SIGTERM: exit code 143, no rank left, nothing marked as finished, and the folder free again."""
    packages = pipeline.packages  # type: ignore[attr-defined]
    do = f"print(os.getpid(), file=open({str(tmp_path / 'ranks')!r}, 'a'), flush=True); time.sleep(600)"
    words = ["--reward-model", "model", "--output-dir", "out", "--num-gpus", "2"]
    words += ["--set", f"{packages[0]}.model=model", "--set", f"{packages[0]}.do={do}"]
    ended = subprocess.Popen(
        [sys.executable, "-c", _FAKE_TRAIN, ",".join(packages), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(ranks := _lines(tmp_path / "ranks")) < 2 and time.monotonic() < deadline:
            assert ended.poll() is None, ended.communicate()
            time.sleep(0.05)
        locked = pipeline("--num-gpus", "2", "--set", f"{packages[0]}.do={do}")
        ended.send_signal(signal.SIGTERM)
        _, stderr = ended.communicate(timeout=60)
    finally:
        ended.kill()
    assert f"out is in use by process {ended.pid} on " in locked.stderr
    assert locked.exit_code == 2
    assert ended.returncode == 143
    assert stderr.startswith("error: terminated\n  to continue: python train.py --reward-model model --output-dir out")
    assert len(ranks) == 2
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(int(rank), 0)
    assert read_result(Path("out", packages[0])) is None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
