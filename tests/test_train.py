"""train.py: what is wrong is said before anything starts, what runs can be stopped and goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import train
from rlhf import hardware
from rlhf.errors import ConfigError
from rlhf.files import claim_folder
from rlhf.launch import ROOT
from rlhf.pipeline_config import PipelineConfig
from rlhf.recipes import Request, StageSpec, choose_recipe
from rlhf.stage import read_result
from tests.fakes import make_model, make_stage

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four cores, no GPU, a working folder of one's own."""
    monkeypatch.setattr(hardware, "accelerators", lambda: 0)
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_DEBUG", "")


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Flags that name a model and data which are there, and an output folder that is not yet."""
    make_model(tmp_path / "model")
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--actor-model", "model", "--data-path", "rows.jsonl", "--output-dir", "out"]


def run(*words: str) -> Result:
    return CliRunner().invoke(train.main, list(words))


def errors(result: Result) -> list[str]:
    """The error lines; there must be nothing else on stderr, and nothing written."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    assert not Path("out").exists()
    return [line.removeprefix("error: ") for line in lines]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_help_is_in_groups_and_names_every_option() -> None:
    text = run("--help").output
    headings = re.findall(r"^(\w[\w ]+):$", text, re.MULTILINE)
    assert headings == ["Models", "Data", "The run", "Training", "The machine"]
    for name in PipelineConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in text
    for flag in ("--recipe", "--set", "--overwrite", "--dry-run", "--no-ema"):
        assert flag in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["--actor-modl", "x"], "--actor-model"),
        (["--actor-model", "opt-13c"], "opt-13b"),
        (["--actor-model", "no/such/folder"], "--actor-model no/such/folder: no folder no/such/folder"),
        (["--reward-model", "rows.jsonl"], "--reward-model rows.jsonl: rows.jsonl is a file"),
        (["--data-path", "none.jsonl"], "none.jsonl"),
        (["--stages", "4"], "--stages '4' is not valid: stages are 1, 2 and 3"),
        (["--num-gpus", "5"], "--num-gpus 5: there is no GPU, and 4 cores hold that many CPU ranks at most"),
        (["--dtype", "fp16"], "step1_sft.dtype=fp16 needs a GPU"),
        (["--dtype", "bf16", "--actor-zero-stage", "0"], "step1_sft.zero_stage=0 with bf16 drifts"),
        (["--set", "step1_sft.optimizer=adafactor"], "adafactor works at ZeRO-0 only"),
        (["--set", "step3_ppo.mini_batch_size=6"], "step3_ppo.mini_batch_size=6 does not divide rollout_batch_size=64"),
        (["--set", "step1_sft.mini_batch_size=1", "--num-gpus", "2"], "leaves some of the 2 ranks without a row"),
        (["--set", "step1_sft.epcohs=2"], "did you mean 'epochs'?"),
        (["--set", "step3_ppo.actor_model=x"], "is worked out by train.py; use --sft-model"),
        (["--max-steps", "3", "--set", "step3_ppo.max_steps=4"], "steps 3 and --set step3_ppo.max_steps=4 disagree"),
        (["--set", "step1_sft.data_seed=7"], "stages must split the data alike"),
        (["--recipe", "opt-13"], "no recipe of this name; did you mean 'opt-13b'?"),
        (["--sft-model", "model"], "--sft-model has no effect while stage 1 runs"),
        (["--ptx-coef", "3"], "ptx_coef is set but ptx_data is empty"),
        (["--stages", "3"], "out/step1_sft holds no finished one; add stage 1 to --stages, or give --sft-model"),
        (["--stages", "3"], "out/step2_reward holds no finished one; add stage 2 to --stages, or give --reward-model"),
        (["--stages", "1,3", "--reward-model", "model"], "--reward-model model: has no scalar head"),
        (["--node-rank", "1"], "--node-rank has no effect on one node"),
        (["--num-nodes", "2"], "--num-nodes 2 needs --hostfile"),
        (["--num-nodes", "2", "--node-rank", "2", "--master-addr", "a"], "--node-rank 2: with --num-nodes 2 they"),
        (["--max-prompt-length", "2000"], "lower one of them by 208"),
        (["--output-dir", "rows.jsonl"], "rows.jsonl is a file"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(inputs: list[str], words: list[str], message: str) -> None:
    found = errors(run(*inputs, *words))
    assert any(message in line for line in found), found


def test_all_that_is_wrong_is_said_at_once(inputs: list[str]) -> None:
    """Nobody wants to find five mistakes in five starts of a job that waits in a queue."""
    found = errors(
        run(
            *("--actor-model", "nowhere/model", "--data-path", "none.jsonl", "--output-dir", "out", "--num-gpus", "64"),
            *("--set", "step2_reward.epochs=0", "--set", "step9.x=1", "--recipe", "none", "--seed", "-1"),
            *("--set", "step3_ppo.rollout_batch_size=30"),
        )
    )
    for part in (
        "nowhere/model",
        "none.jsonl",
        "--num-gpus 64",
        "step2_reward.epochs=0",
        "'step9'",
        "--seed -1",
        "=30",
    ):
        assert any(part in line for line in found), (part, found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    "text, message",
    [
        ("step1_sft: {epochs: 2\n", "is not valid YAML at line"),
        ("step1: {epochs: 2}\n", "'step1' is no section of a recipe; did you mean 'step1_sft'?"),
        ("step1_sft: 3\n", "section 'step1_sft' holds no settings but 3"),
        ("step1_sft: {epoch: 2}\n", "step1_sft.epoch is not a setting; did you mean 'epochs'?"),
        ("pipeline: {actor_modle: x}\n", "pipeline.actor_modle is not a setting; did you mean 'actor_model'?"),
        ("prepare: {module: no.such.module}\n", "prepare.module='no.such.module': there is no such Python module"),
        ("step2_reward: {output_dir: x}\n", "step2_reward.output_dir is worked out by train.py; use --output-dir"),
        ("evaluate: {max_promts: 3}\n", "evaluate.max_promts is not a setting; did you mean 'max_prompts'?"),
    ],
)
def test_a_wrong_recipe_is_explained(inputs: list[str], text: str, message: str) -> None:
    Path("mine.yaml").write_text(text)
    found = errors(run(*inputs, "--recipe", "mine.yaml"))
    assert any(message in line for line in found), found


def test_a_reward_model_is_no_actor(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "scalar", scalar_head=True)
    found = errors(run(*inputs, "--actor-model", "scalar"))
    assert "--actor-model scalar: is a reward model, not a language model" in found


def test_a_folder_of_something_else_is_not_touched(inputs: list[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("")
    refused = run(*inputs, "--output-dir", "thesis", "--overwrite")
    assert refused.exit_code == 2
    assert "is not empty and was not written by a run" in refused.stderr
    assert [p.name for p in Path("thesis").iterdir()] == ["chapter.tex"]


# --- plans -----------------------------------------------------------------------------------------------------------


def plan(*words: str, prepared: dict[str, object] | None = None) -> object:
    """The plan that flags of PipelineConfig, --set and --recipe make."""
    flags: dict[str, object] = {}
    sets, recipe = [], None
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "--set":
            sets.append(value)
        elif flag == "--recipe":
            recipe = value
        else:
            flags[flag[2:].replace("-", "_")] = [value] if flag == "--data-path" else yaml.safe_load(value)
    request = Request(flags=flags, sets=sets, recipe=recipe)
    return train.make_plan(train.STAGES, request, data_problems=lambda config: [], prepared=prepared)


def settings(made: object) -> dict[str, object]:
    return {stage.spec.package: stage.config for stage in made.stages}  # type: ignore[attr-defined]


def test_precedence(inputs: list[str]) -> None:
    """default < recipe's pipeline < recipe's stage < flag < --set."""
    Path("mine.yaml").write_text(
        "pipeline: {max_steps: 10, lora_rank: 4, kl_coef: 0.1}\n"
        "step2_reward: {max_steps: 20}\nstep3_ppo: {max_steps: 30}\n"
    )
    made = settings(plan(*inputs, "--recipe", "mine.yaml", "--lora-rank", "8", "--set", "step3_ppo.lora_rank=8"))
    assert [c.max_steps for c in made.values()] == [10, 20, 30]  # type: ignore[attr-defined]
    assert [c.lora_rank for c in made.values()] == [8, 8, 8]  # type: ignore[attr-defined]
    assert made["step3_ppo"].kl_coef == 0.1  # type: ignore[attr-defined]
    assert made["step3_ppo"].gamma == 1.0  # type: ignore[attr-defined]
    made = settings(plan(*inputs, "--recipe", "mine.yaml", "--max-steps", "40"))
    assert [c.max_steps for c in made.values()] == [40, 40, 40]  # type: ignore[attr-defined]
    made = settings(plan(*inputs, "--recipe", "mine.yaml", "--set", "step3_ppo.max_steps=50"))
    assert [c.max_steps for c in made.values()] == [10, 20, 50]  # type: ignore[attr-defined]


def test_stages_are_handed_their_models(inputs: list[str]) -> None:
    made = settings(plan(*inputs))
    assert made["step1_sft"].model == made["step2_reward"].model == "model"  # type: ignore[attr-defined]
    assert made["step3_ppo"].actor_model == "out/step1_sft/model"  # type: ignore[attr-defined]
    assert made["step3_ppo"].reward_model == "out/step2_reward/model"  # type: ignore[attr-defined]


def test_stage_3_alone_takes_models_that_are_named(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "sft")
    make_model(tmp_path / "reward", scalar_head=True)
    made = settings(plan(*inputs[2:], "--stages", "3", "--sft-model", "sft", "--reward-model", "reward"))
    assert list(made) == ["step3_ppo"]
    assert (made["step3_ppo"].actor_model, made["step3_ppo"].reward_model) == ("sft", "reward")  # type: ignore[attr-defined]


def test_stage_3_alone_takes_finished_stages_of_the_folder(inputs: list[str]) -> None:
    """The same flags as before and --stages 3: the reward model's base is then not taken for a trained one."""
    for stage in ("step1_sft", "step2_reward"):
        claim_folder(Path("out") / stage)
        Path("out", stage, "done.json").write_text('{"seconds": 1, "metrics": {}, "models": {}}')
    Path("out/.rlhf.lock").touch()
    made = settings(plan(*inputs, "--reward-model", "model", "--stages", "3"))
    assert made["step3_ppo"].reward_model == "out/step2_reward/model"  # type: ignore[attr-defined]


def test_what_a_preparation_brings_gives_way_to_flags(inputs: list[str], tmp_path: Path) -> None:
    make_model(tmp_path / "made")
    Path("mine.yaml").write_text("prepare: {module: json}\n")
    prepared: dict[str, object] = {"actor_model": "made", "data_path": ["made.jsonl"]}
    made = settings(plan("--recipe", "mine.yaml"))  # before it has run, nothing is missed
    made = settings(plan("--recipe", "mine.yaml", prepared=prepared))
    assert made["step1_sft"].model == "made"  # type: ignore[attr-defined]
    assert made["step3_ppo"].data_path == ["made.jsonl"]  # type: ignore[attr-defined]
    made = settings(plan(*inputs, "--recipe", "mine.yaml", prepared=prepared))
    assert made["step1_sft"].model == "model"  # type: ignore[attr-defined]


def test_a_resumed_run_is_planned_with_what_its_preparation_brought(tmp_path: Path) -> None:
    """The finished stage 1 was trained from the prepared model: planned without it, it looked like another run's."""
    make_model(tmp_path / "made")
    Path("mine.yaml").write_text("prepare: {module: json, size: 3}\n")
    prepared: dict[str, object] = {"actor_model": "made", "data_path": ["made.jsonl"]}
    first = settings(plan("--recipe", "mine.yaml", "--output-dir", "out", prepared=prepared))
    for folder, name, value in (
        ("out/prepare", "done.json", {"settings": {"module": "json", "size": 3}, "values": prepared}),
        ("out/step1_sft", "done.json", {"seconds": 1, "metrics": {}, "models": {}}),
        ("out/step1_sft", "config.yaml", first["step1_sft"].model_dump(mode="json")),  # type: ignore[attr-defined]
    ):
        claim_folder(Path(folder))
        Path(folder, name).write_text(json.dumps(value))
    Path("out/.rlhf.lock").touch()
    again = plan("--recipe", "mine.yaml", "--output-dir", "out")
    assert [stage.finished for stage in again.stages] == [True, False, False]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"prepared with other settings \(module: json, size: 3; now .*size: 4\)"):
        plan("--recipe", "mine.yaml", "--output-dir", "out", "--set", "prepare.size=4")


def test_the_recipe_of_a_known_actor_is_taken_aloud(inputs: list[str]) -> None:
    """Also when the plan fails: its problems may come from a recipe that nobody asked for."""
    name, why = choose_recipe(Request(flags={"actor_model": "OPT-13B"}))
    assert name == "opt-13b"
    assert "--recipe none" in why
    failed = run("--actor-model", "opt-13b", "--num-gpus", "99")
    assert failed.exit_code == 2
    assert why in failed.stdout
    assert choose_recipe(Request(flags={"actor_model": "opt-13b"}, recipe="none")) == (None, "")
    assert choose_recipe(Request(flags={"actor_model": "model"})) == (None, "")


def test_without_models_and_data_it_is_the_demo_and_a_resumed_run_knows_its_recipe(tmp_path: Path) -> None:
    assert choose_recipe(Request(flags={"num_gpus": 2}))[0] == "demo"
    assert choose_recipe(Request(flags={"data_path": ["x.jsonl"]}))[0] is None
    Path("out").mkdir()
    Path("out/pipeline.yaml").write_text("run: {recipe: opt-1.3b}\n")
    assert choose_recipe(Request(flags={"output_dir": Path("out")}))[0] == "opt-1.3b"
    assert choose_recipe(Request(flags={"output_dir": Path("out")}, overwrite=True))[0] == "demo"


def test_a_dry_run_prints_the_plan_and_writes_nothing(inputs: list[str]) -> None:
    shown = run(*inputs, "--num-gpus", "2", "--max-steps", "7", "--set", "step3_ppo.kl_coef=0.1", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert "2 CPU ranks, 2 threads each" in shown.stdout
    assert "2 × python -m step1_sft --config out/step1_sft/config.yaml" in shown.stdout
    assert "mini_batch_size 32 = 2 ranks × 4 micro-batches × 4 rows" in shown.stdout
    assert "dtype: fp32, ZeRO 1" in shown.stdout
    assert "rollout_batch_size 64 = 64 prompts × 1 response; 1 step of mini_batch_size 64 = 2 ranks ×" in shown.stdout
    assert re.search(r"kl_coef\W+3\W+0\.1\W+--set", shown.stdout)
    assert re.search(r"max_steps\W+1 2 3\W+7\W+flag", shown.stdout)
    assert re.search(r"--max-steps\W+7\W+flag", shown.stdout)
    assert not Path("out").exists()


# --- runs, with stages that train nothing -----------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`pipeline("--set", "{1}.steps=2")` runs three fake stages into out/; {1}, {2}, {3} are their names."""
    packages = [make_stage(tmp_path / "packages", monkeypatch, suffix=f"step{n}") for n in (1, 2, 3)]
    specs = tuple(
        StageSpec(number, name, __import__(f"{name}.config", fromlist=["FakeConfig"]).FakeConfig)
        for number, name in enumerate(packages, start=1)
    )
    monkeypatch.setattr(train, "STAGES", specs)
    monkeypatch.setattr(train, "data_problems", lambda config: [])
    monkeypatch.setattr("rlhf.closing._report", lambda output: None)
    make_model(tmp_path / "model")

    def invoke(*words: str) -> Result:
        given = ["--output-dir", "out", "--reward-model", "model", "--set", f"{packages[0]}.model=model", *words]
        return run(*(word.format("", *packages) for word in given))

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
    assert "brought nothing; its last line must be a JSON object" in ended.stderr


def test_the_record_of_a_run_is_a_recipe(pipeline: Invoke) -> None:
    """Another run with the same settings, elsewhere: --recipe out/pipeline.yaml."""
    assert pipeline("--stages", "1", "--set", "{1}.steps=2").exit_code == 0
    one = pipeline.packages[0]  # type: ignore[attr-defined]
    again = run("--stages", "1", "--recipe", "out/pipeline.yaml", "--output-dir", "other")
    assert again.exit_code == 0, again.output
    result = read_result(Path("other", one))
    assert result is not None
    assert result.metrics == {"fake/loss": 0.5}


# --- as a process ----------------------------------------------------------------------------------------------------


def test_train_as_a_process_answers_without_torch_and_with_its_exit_code(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--actor-model', 'nowhere/at/all', '--data-path', 'none.jsonl']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert ended.stdout == "2 []\n", ended.stderr
    assert all(line.startswith("error: ") for line in ended.stderr.splitlines())


_FAKE_TRAIN = """
import sys, importlib
import train
from rlhf.recipes import StageSpec

names = sys.argv[1].split(",")
train.STAGES = tuple(
    StageSpec(n, name, importlib.import_module(f"{name}.config").FakeConfig) for n, name in enumerate(names, start=1)
)
train.data_problems = lambda config: []
sys.argv[:2] = ["train.py"]
train.main()
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
