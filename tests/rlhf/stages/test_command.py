"""A stage as a command: problems before anything is written, one run per folder, a marker at the very end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from rlhf.files import claim_folder
from rlhf.metrics import read_metrics
from rlhf.stages import command
from rlhf.stages.command import stage_command
from rlhf.stages.result import read_result
from rlhf.training import distributed
from tests.helpers.fakes import command_of, make_stage, spec_of

Run = Callable[..., Result]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return make_stage(tmp_path / "packages", monkeypatch)


@pytest.fixture
def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("--steps", 4)` runs the stage into tmp_path/out, in this process."""
    monkeypatch.delenv("RLHF_DEBUG", raising=False)

    def invoke(*arguments: object, output: str = "out") -> Result:
        words = ["--output-dir", str(tmp_path / output), *map(str, arguments)]
        return CliRunner().invoke(command_of(name), words)

    return invoke


def test_a_stage_runs_and_says_so_last(run: Run, name: str, tmp_path: Path) -> None:
    done = run("--steps", 4)
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "out"
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 4
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4]
    marker = json.loads((out / "done.json").read_text())
    assert (marker["stage"], marker["metrics"], marker["models"]) == (
        name,
        {"fake/loss": 0.25},
        {},
    )
    result = read_result(out)
    assert result is not None
    assert result.metrics == {"fake/loss": 0.25}
    assert f"{name} finished in" in done.stdout


def test_a_finished_stage_is_not_run_again(run: Run, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns
    again = run("--note", "a setting that may change")
    assert again.exit_code == 0
    assert "is finished" in again.stdout
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_config_is_refused_with_the_difference(run: Run, tmp_path: Path) -> None:
    run("--steps", 4)
    refused = run("--steps", 5, "--seed", 7)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "seed: 0 → 7; steps: 4 → 5" in refused.stderr
    assert (tmp_path / "out" / "done.json").exists()
    anew = run("--steps", 5, "--seed", 7, "--overwrite")
    assert anew.exit_code == 0, anew.stderr
    assert len(read_metrics(tmp_path / "out" / "metrics.jsonl")) == 5


def test_a_stage_that_failed_leaves_no_marker_and_runs_again(run: Run, tmp_path: Path) -> None:
    """The first attempt dies at step 2, and its metrics must not be mixed with the second's."""
    (tmp_path / "broken").touch()
    do = f"if step == 2 and Path({str(tmp_path / 'broken')!r}).exists(): raise RuntimeError('the cat sat on it')"
    failed = run("--do", do)
    assert failed.exit_code == 1
    assert failed.stderr == "error: RuntimeError: the cat sat on it\n"
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()
    assert read_result(tmp_path / "out") is None
    (tmp_path / "broken").unlink()
    (tmp_path / "out" / "spent.json").write_text('{"seconds": 100.0}')
    assert run("--do", do).exit_code == 0
    result = read_result(tmp_path / "out")
    assert result is not None
    assert result.seconds > 100  # what both attempts took, as one pays for both
    assert [row["step"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    "do, code, line",
    [
        ("raise OSError(errno.ENOSPC, 'No space left', 'weights')", 2, "error: the disk is full while writing weights"),
        ("raise DataError('a.jsonl, row 3: no prompt', 'b.jsonl is empty')", 2, "error: a.jsonl, row 3: no prompt\n"),
        ("raise KeyboardInterrupt", 130, "error: interrupted\n"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)", 143, "error: terminated\n"),
    ],
)
def test_exit_codes(run: Run, do: str, code: int, line: str) -> None:
    ended = run("--do", do)
    assert ended.exit_code == code
    assert line in ended.stderr
    assert "Traceback" not in ended.stderr


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_DEBUG", "")  # so that what --debug sets goes with the test
    ended = run("--debug", "--do", "raise RuntimeError('where?')")
    assert ended.exit_code == 1
    assert "Traceback" in ended.stderr
    assert ended.stderr.endswith("error: RuntimeError: where?\n")


def test_every_problem_is_reported_before_anything_is_written(run: Run, name: str, tmp_path: Path) -> None:
    wrong = run("--steps", 13, "--dtype", "fp16", "--mini-batch-size", 0)
    assert wrong.exit_code == 2
    assert wrong.stderr == f"error: {name}.mini_batch_size=0 is not valid: should be greater than or equal to 1\n"
    wrong = run("--steps", 13, "--dtype", "fp16")
    assert wrong.stderr.splitlines() == [
        f"error: {name}.steps=13 is unlucky; try 12",
        f"error: {name}.dtype=fp16 needs a GPU: on a CPU fp16 is slow and its kernels are incomplete; use bf16 or fp32",
    ]
    assert not (tmp_path / "out").exists()


def test_the_package_s_own_checks_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make_stage(tmp_path / "packages", monkeypatch, number=1)
    spec = replace(spec_of(name), problems=lambda config, models, machine: [f"no {config.note} on {machine.ranks}"])
    words = ["--note", "luck", "--model", "x", "--output-dir", str(tmp_path / "out")]
    ended = CliRunner().invoke(stage_command(spec), words)
    assert ended.exit_code == 2
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("error: --model x: ")  # from what the spec says of its inputs
    assert lines[1:] == ["error: no luck on 1"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stpes", "4"], "--steps"),
        (["--steps", "four"], "'four' is not a valid integer"),
        (["--dtype", "fp8"], "'fp8' is not one of"),
    ],
)
def test_flags_that_cannot_be_are_one_line(run: Run, words: list[str], message: str) -> None:
    ended = run(*words)
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_settings_of_a_file_give_way_to_flags(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("steps: 5\nseed: 3\n")
    assert run("--config", path, "--seed", 4, "--local_rank", 0).exit_code == 0
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (written["steps"], written["seed"]) == (5, 4)
    path.write_text("stpes: 5\n")
    ended = run("--config", path, output="other")
    assert "stpes is not a setting; did you mean 'steps'?" in ended.stderr


def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("mine: true\n")
    ended = run("--overwrite")
    assert ended.exit_code == 2
    assert "is not empty and was not written by a run" in ended.stderr
    assert (tmp_path / "out" / "config.yaml").read_text() == "mine: true\n"


def test_a_damaged_marker_is_named(run: Run, tmp_path: Path) -> None:
    run()
    (tmp_path / "out" / "done.json").write_text("{")
    with pytest.raises(Exception, match=r"done\.json is damaged"):
        read_result(tmp_path / "out")


def test_another_rank_writes_nothing_and_says_who_it_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_folder(tmp_path / "out")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert run().exit_code == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".rlhf.lock"]
    failed = run("--do", "raise RuntimeError('here')")
    assert failed.stderr == "error: rank 1: RuntimeError: here\n"


@pytest.mark.parametrize(
    ("dtype", "hardware", "warned"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bf16_on_a_cpu_without_it_is_said(
    dtype: str, hardware: bool, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "computes_in_bf16", lambda: hardware)
    command._warn_of_slow_dtype(dtype)
    assert ("does not multiply in bf16" in capsys.readouterr().err) == warned


def test_a_lone_stage_says_its_cause_whatever_rank_the_environment_names(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RANK=1, left in a shell or set by a cluster, made the stage one of two: it wrote and said nothing."""
    monkeypatch.setenv("RANK", "1")
    assert run("--do", "raise RuntimeError('here')").stderr == "error: RuntimeError: here\n"
    assert run(output="second").exit_code == 0
    assert (tmp_path / "second" / "done.json").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused = run(output="other")
    assert refused.exit_code == 2
    assert "RANK=1 and WORLD_SIZE=1 do not go together" in refused.stderr
    assert not (tmp_path / "other").exists()
