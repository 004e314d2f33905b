"""A stage that is stopped anywhere and started again gives what it would have given: the same metrics, rollouts and
models, bit for bit, and to float noise on another number of ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import step3_ppo.rollout
from rlhf.errors import EXIT_INTERRUPT, EXIT_TERMINATED, DataError, Terminated, error_lines
from rlhf.metrics import FILE_NAME, MetricsLog
from rlhf.training.checkpoint import Checkpoints
from tests.helpers import ppo, stages
from tests.helpers.tiny import save_tiny

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.slow]

DIES_AFTER, SAVED_AT, TOTAL = 3, 2, 4  # steps
COMMON: dict[str, Any] = {"save_every": 2, "weight_decay": 0.1, "warmup_ratio": 0.3}
LORA: dict[str, Any] = {"lora_rank": 2, "lora_learning_rate": 0.02}
# everything with a state of its own: two epochs of mini-batches, adaptive KL, the moving average, the pretraining mix
PPO: dict[str, Any] = {
    "iterations": TOTAL, "ppo_epochs": 2, "responses_per_prompt": 2, "rollout_batch_size": 4, "mini_batch_size": 2,
    "adaptive_kl_target": 0.01, "adaptive_kl_horizon": 20, "ptx_length": 16, "keep_rollouts": 1,
    "save_rollouts_every": 3, "max_response_length": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Models and data on disk. gpt2 has dropout, which a resumed run must draw alike."""

    pairs: str
    text: str
    gpt2: str
    llama: str
    reward_model: str


@pytest.fixture(scope="module")
def inputs(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Line {i} of the text. " * 3}) + "\n" for i in range(9)))
    pairs = stages.write_pairs(folder / "pairs.jsonl")
    gpt2, llama = save_tiny(folder / "gpt2", "gpt2"), save_tiny(folder / "llama", "llama")
    stages.reward(folder / "reward", llama, pairs)
    return Inputs(pairs, str(text), str(gpt2), str(llama), str(folder / "reward/model"))


# stage 3 without a critic, by its estimator
ESTIMATORS: dict[str, dict[str, Any]] = {
    name: {"advantage_estimator": name} for name in ("rloo", "grpo", "dr_grpo", "reinforce_pp")
}
ESTIMATORS["grpo"] |= {"drop_uniform_groups": True, "missing_eos_penalty": 0.1}


def run(stage: str, folder: Path, inputs: Inputs, zero_stage: int, lora: bool, **changes: Any) -> None:
    more = {**COMMON, **(LORA if lora else {}), **changes}
    if lora and stage in ("sft", "reward"):  # the others train without dropout
        more["lora_dropout"] = 0.1
    if stage == "sft":
        stages.sft(folder, inputs.gpt2, inputs.pairs, zero_stage=zero_stage, max_steps=TOTAL, eval_every=3, **more)
    elif stage == "reward":
        more = {"zero_stage": zero_stage, "max_steps": TOTAL, "epochs": 2, "eval_every": 1, **more}
        stages.reward(folder, inputs.gpt2, inputs.pairs, **more)
    elif stage in ("dpo", "kto"):
        more |= {"loss": "kto"} if stage == "kto" else {}
        more = {"zero_stage": zero_stage, "max_steps": TOTAL, "epochs": 2, "eval_every": 3, **more}
        stages.dpo(folder, inputs.gpt2, inputs.pairs, **more)
    else:
        zero = {"actor_zero_stage": zero_stage, "critic_zero_stage": zero_stage}
        more = {**PPO, **ESTIMATORS.get(stage, {}), **zero, **more}
        stages.ppo(folder, inputs.llama, inputs.reward_model, inputs.pairs, ptx_data=[inputs.text], **more)


class Killed(BaseException):
    """Stands for a power cut: nothing is said or written any more."""


@contextlib.contextmanager
def at_row(step: int, do: Callable[[], None]) -> Iterator[None]:
    """While inside, `do` is called right after the metrics of `step` are written."""
    log = MetricsLog.log

    def logged(self: MetricsLog, number: int, metrics: Any) -> None:
        log(self, number, metrics)
        if number == step:
            do()

    with mock.patch.object(MetricsLog, "log", logged):
        yield


def _die() -> None:
    raise Killed


def run_twice(stage: str, folder: str, inputs: Inputs, zero_stage: int, lora: bool) -> None:
    """Uninterrupted into folder/whole; into folder/cut until it dies, and again from its checkpoint."""
    whole, cut = Path(folder) / "whole", Path(folder) / "cut"
    run(stage, whole, inputs, zero_stage, lora)
    with contextlib.suppress(Killed), at_row(DIES_AFTER, _die):
        run(stage, cut, inputs, zero_stage, lora)
        raise AssertionError("it came to its end")
    assert [path.name for path in (cut / "checkpoints").glob("step-*")] == [f"step-{SAVED_AT:08}"]
    run(stage, cut, inputs, zero_stage, lora)


def metrics(folder: Path) -> list[str]:
    """The rows of metrics as they are written, figures of the clock left out."""
    rows = [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]
    timed = ("time/", "perf/")
    return [json.dumps({k: v for k, v in row.items() if not k.startswith(timed)}) for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    """What a stage leaves besides metrics and checkpoints: models and rollouts, byte for byte."""
    files = [path for pattern in ("*.safetensors", "*.jsonl") for path in folder.rglob(pattern)]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "checkpoints" not in path.parts and path.name != FILE_NAME
    }


def assert_same(folder: Path) -> None:
    whole, cut = metrics(folder / "whole"), metrics(folder / "cut")
    assert len(whole) >= TOTAL
    assert cut == whole
    expected, found = contents(folder / "whole"), contents(folder / "cut")
    assert expected and found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


# stage, ZeRO stage, LoRA; tests/rlhf/training/test_checkpoint.py has every combination of the last two
ONE_RANK = [
    *[("sft", 0, False), ("sft", 2, True), ("sft", 3, False), ("reward", 1, False), ("reward", 3, True)],
    *[("dpo", 1, False), ("dpo", 3, False), ("dpo", 2, True)],
    *[("kto", 0, False), ("kto", 3, True)],
    *[("ppo", 0, True), ("ppo", 1, False), ("ppo", 2, True), ("ppo", 3, False)],
    *[("rloo", 1, True), ("grpo", 3, False), ("dr_grpo", 0, False), ("reinforce_pp", 2, False)],
]
TWO_RANKS = [
    *[("sft", 3, True), ("reward", 2, False), ("dpo", 3, True), ("ppo", 0, False), ("ppo", 1, False), ("ppo", 3, True)],
    ("kto", 2, False),
    *[("rloo", 2, False), ("grpo", 3, True)],
]


@pytest.mark.parametrize("stage, zero_stage, lora", ONE_RANK)
def test_a_resumed_stage_is_the_uninterrupted_one(
    stage: str, zero_stage: int, lora: bool, inputs: Inputs, tmp_path: Path
) -> None:
    """It dies after step 3, whose metrics and rollouts are on disk; the checkpoint is of step 2."""
    run_twice(stage, str(tmp_path), inputs, zero_stage, lora)
    assert_same(tmp_path)


def _all_on_this_rank(folder: str, inputs: Inputs) -> None:
    for stage, zero_stage, lora in TWO_RANKS:
        run_twice(stage, f"{folder}/{stage}-{zero_stage}-{lora}", inputs, zero_stage, lora)


def test_on_two_ranks_too(run_ranks: Callable[..., list[Any]], inputs: Inputs, tmp_path: Path) -> None:
    run_ranks(_all_on_this_rank, str(tmp_path), inputs, timeout=300)
    for stage, zero_stage, lora in TWO_RANKS:
        assert_same(tmp_path / f"{stage}-{zero_stage}-{lora}")


# --- other ranks, another ZeRO stage ---------------------------------------------------------------------------------


def _dies(stage: str, folder: str, inputs: Inputs, zero_stage: int) -> None:
    fixed = mock.patch.object(step3_ppo.rollout, "roll_out", ppo.fixed_rollout)
    with fixed, contextlib.suppress(Killed), at_row(DIES_AFTER, _die):
        run(stage, Path(folder), inputs, zero_stage, False, no_dropout=True)


def _all_die(folder: str, inputs: Inputs) -> None:
    for stage, zero_stage in (("sft", 3), ("reward", 1), ("dpo", 2), ("kto", 3), ("ppo", 2), ("rloo", 1)):
        _dies(stage, f"{folder}/{stage}", inputs, zero_stage)


def test_two_ranks_are_resumed_by_one_at_another_zero_stage(
    run_ranks: Callable[..., list[Any]], inputs: Inputs, tmp_path: Path
) -> None:
    """Metrics from step 3 on are those of one rank that was never interrupted, but for the order of sums."""
    run_ranks(_all_die, str(tmp_path / "cut"), inputs, timeout=300)
    for stage, zero_stage in (("sft", 1), ("reward", 3), ("dpo", 0), ("kto", 1), ("ppo", 0), ("rloo", 2)):
        with mock.patch.object(step3_ppo.rollout, "roll_out", ppo.fixed_rollout):
            run(stage, tmp_path / "cut" / stage, inputs, zero_stage, False, no_dropout=True)
            run(stage, tmp_path / "whole" / stage, inputs, zero_stage, False, no_dropout=True)
        whole = [json.loads(line) for line in metrics(tmp_path / "whole" / stage)]
        cut = [json.loads(line) for line in metrics(tmp_path / "cut" / stage)]
        assert [row["step"] for row in cut] == [row["step"] for row in whole]
        for expected, found in zip(whole, cut, strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, rel=2e-4, abs=2e-5, nan_ok=True), f"{stage}: {name}"


# --- signals ---------------------------------------------------------------------------------------------------------

SIGNALS = [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPT)]


@pytest.mark.parametrize("number, code", SIGNALS, ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_leaves_a_checkpoint_of_the_step_that_was_running(
    number: signal.Signals, code: int, inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 3 is due for none: without the signal the next checkpoint would be of step 4."""
    with pytest.raises((Terminated, KeyboardInterrupt)) as caught, at_row(3, lambda: os.kill(os.getpid(), number)):
        run("sft", tmp_path / "cut", inputs, 1, False)
    assert error_lines(caught.value)[1] == code
    assert "a checkpoint of step 3 is written" in capsys.readouterr().out
    run("sft", tmp_path / "cut", inputs, 1, False)
    assert "resumed after step 3 of 4" in capsys.readouterr().out
    run("sft", tmp_path / "whole", inputs, 1, False)
    assert_same(tmp_path)


def test_a_second_signal_ends_at_once(inputs: Inputs, tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice does not want to wait for a checkpoint."""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), at_row(3, twice):
        run("sft", tmp_path, inputs, 1, False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_signal_during_the_last_checkpoint_is_not_lost(inputs: Inputs, tmp_path: Path) -> None:
    """No step follows that would notice it, and exporting a large model takes minutes."""
    save = Checkpoints.save

    def saved(self: Checkpoints, step: int, *args: Any, **options: Any) -> None:
        save(self, step, *args, **options)
        if step == TOTAL:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated), mock.patch.object(Checkpoints, "save", saved):
        run("sft", tmp_path, inputs, 1, False)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == f"step-{TOTAL:08}"
    assert not (tmp_path / "model").exists()


def _signal_to_rank_one(folder: str, inputs: Inputs) -> tuple[str, list[str]]:
    def act() -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with at_row(3, act):
            run("sft", Path(folder), inputs, 1, False)
    except Terminated as error:
        return type(error).__name__, sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())
    return "", []


def test_a_signal_to_one_rank_is_agreed_on_by_all(
    run_ranks: Callable[..., list[Any]], inputs: Inputs, tmp_path: Path
) -> None:
    """A scheduler may signal one process only; a rank that stopped alone would leave the others hanging."""
    found = run_ranks(_signal_to_rank_one, str(tmp_path), inputs)
    assert found == [("Terminated", ["step-00000002", "step-00000003"])] * 2


# --- what a resumed run finds ----------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("sft", tmp_path / "whole", inputs, 1, False)
    with pytest.raises(Killed), at_row(4, _die):
        run("sft", tmp_path / "cut", inputs, 1, False, save_every=1)
    newest = tmp_path / "cut/checkpoints/step-00000003/model-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    run("sft", tmp_path / "cut", inputs, 1, False)
    said = capsys.readouterr()
    assert f"checkpoint {newest.parent} is damaged" in said.err
    assert "resumed after step 2 of 4" in said.out
    assert_same(tmp_path)


def test_a_run_does_not_go_on_with_other_data(inputs: Inputs, tmp_path: Path) -> None:
    """The file was edited between: steps 3 and 4 would take rows of another order, and nobody would know."""
    changing = tmp_path / "pairs.jsonl"
    mine = dataclasses.replace(inputs, pairs=stages.write_pairs(changing))
    with pytest.raises(Killed), at_row(DIES_AFTER, _die):
        run("sft", tmp_path / "cut", mine, 1, False)
    before = changing.read_text()
    stages.write_pairs(changing, count=60)
    with pytest.raises(DataError, match="put the old ones back to go on"):
        run("sft", tmp_path / "cut", mine, 1, False)
    changing.write_text(before)
    run("sft", tmp_path / "cut", mine, 1, False)


def test_nor_with_another_pretraining_mix(inputs: Inputs, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(Path(inputs.text).read_text())
    mine = dataclasses.replace(inputs, text=str(text))
    with pytest.raises(Killed), at_row(DIES_AFTER, _die):
        run("ppo", tmp_path / "cut", mine, 1, False)
    text.write_text(Path(inputs.text).read_text().replace("Line", "Row"))
    with pytest.raises(DataError, match="put the old ones back to go on"):
        run("ppo", tmp_path / "cut", mine, 1, False)


def test_a_stage_that_died_after_its_last_step_only_exports(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("reward", tmp_path / "whole", inputs, 1, False)
    with pytest.raises(Killed), mock.patch("step2_reward.main.export", side_effect=Killed):
        run("reward", tmp_path / "cut", inputs, 1, False)
    capsys.readouterr()
    run("reward", tmp_path / "cut", inputs, 1, False)
    assert "resumed after step 4 of 4" in capsys.readouterr().out
    assert_same(tmp_path)
