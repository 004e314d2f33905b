"""The comparison of methods: each gets the same budget, finished cells are kept, and the table is arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from click.testing import CliRunner

import train
from rlhf.errors import ConfigError
from rlhf.pipeline.plan import make_plan
from rlhf.pipeline.recipes import Request
from scripts import compare_methods
from scripts.compare_methods import METHODS, Cell, make, markdown, row_of, trained_on, words_of, write_recipe


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return Cell("sft", 0, tmp_path / "seed-0", write_recipe(tmp_path), 12_000, 1)


def finish(cell: Cell, *, steps: int, **settings: int) -> None:
    """A cell's stage as it would be on disk."""
    cell.stage.mkdir(parents=True)
    (cell.stage / "config.yaml").write_text(yaml.safe_dump(settings))
    (cell.stage / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, steps + 1)))


def value_of(words: list[str], name: str) -> int:
    (found,) = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return int(found)


def test_every_method_trains_on_the_same_number_of_responses(cell: Cell) -> None:
    """A pair is two responses; the reward model's are a part of the budget of those that sample, and so are both
    epochs of a rollout of 64."""
    finish(cell.beside("reward"), steps=100, mini_batch_size=32)
    assert trained_on(cell.beside("reward")) == 6_400
    dpo, kto = words_of(cell.beside("dpo")), words_of(cell.beside("kto"))
    assert value_of(dpo, "step2_dpo.max_steps") * 64 == pytest.approx(12_000, abs=32)
    assert value_of(kto, "step2_dpo.max_steps") * 32 == pytest.approx(12_000, abs=32)
    for name in ("ppo", "rloo", "grpo"):
        words = words_of(cell.beside(name))
        assert value_of(words, "step3_ppo.iterations") * 64 * 2 + 6_400 == pytest.approx(12_000, abs=64)
        assert str(cell.beside("reward").stage / "model") in words
    assert words_of(cell) == ["--stages", "1"]


def test_what_was_trained_on_is_read_from_the_run(cell: Cell) -> None:
    finish(cell.beside("dpo"), steps=10, mini_batch_size=32)
    finish(cell.beside("kto"), steps=10, mini_batch_size=32)
    finish(cell.beside("rloo"), steps=10, mini_batch_size=32, rollout_batch_size=64, ppo_epochs=2)
    found = {name: trained_on(cell.beside(name)) for name in ("dpo", "kto", "rloo")}
    assert found == {"dpo": 640, "kto": 320, "rloo": 1280}


@pytest.mark.parametrize("name", [*METHODS, "reward"])
def test_train_py_takes_the_options(name: str, cell: Cell, tmp_path: Path) -> None:
    """All of them are flags and settings that the plan knows. The reward model's cell named an SFT model, which stage 2
    does not take, and the command ended there, after the cells before it."""
    finish(cell.beside("reward"), steps=10, mini_batch_size=32)
    words = words_of(cell.beside(name))
    names, flags, sets = iter(words), dict[str, Any](), []
    for flag, value in zip(names, names, strict=True):
        if flag == "--set":
            sets.append(value)
        else:
            key = flag.removeprefix("--").replace("-", "_")
            flags[key] = int(value) if key == "responses_per_prompt" else value
    request = Request(flags={**flags, "output_dir": tmp_path / "run"}, sets=sets, recipe=str(cell.recipe))
    missing = [str(cell.beside(each).stage / "model") for each in ("sft", "reward")]
    other = [line for line in problems_of(request) if not any(folder in line for folder in missing)]
    assert other == []  # nothing but the models, which were not made


def problems_of(request: Request) -> list[str]:
    try:
        make_plan(train.STAGES, request)
    except ConfigError as error:
        return error.problems
    return []


def test_a_finished_cell_is_kept_and_an_unfinished_one_begins_anew(cell: Cell) -> None:
    cell.folder.mkdir(parents=True)
    cell.result.write_text("{}")
    with mock.patch.object(compare_methods, "ProcessPoolExecutor") as pool:
        make(cell, ())
        assert not pool.called
        half_done = cell.beside("dpo").stage / "metrics.jsonl"
        half_done.parent.mkdir(parents=True)
        half_done.write_text("")
        pool.return_value.__enter__.return_value.submit.return_value.result.return_value = {"method": "dpo"}
        make(cell.beside("dpo"), ())
        assert not half_done.exists()
    assert json.loads(cell.beside("dpo").result.read_text()) == {"method": "dpo"}


def figures(gold: list[float], cpu: float) -> dict[str, Any]:
    spent = {"responses": 100, "tokens": 2500.0, "cpu_seconds": cpu, "peak_bytes": 2**30}
    return {"gold": gold, "right": 0.5, "off topic": 0.1, "courteous": 0.4, "kl": 1.0, "length": 10.0, "spent": spent}


def test_a_row_of_the_table_by_hand() -> None:
    """Prompt means over seeds 0.3 and 0.7: 0.5, with the error √(2 · 0.2² / 1 / 2) = 0.2."""
    row = row_of("dpo", {0: figures([0.2, 0.6], 10.0), 1: figures([0.4, 0.8], 30.0)})
    assert row["gold"] == pytest.approx(0.5)
    assert row["error"] == pytest.approx(0.2)
    assert row["seeds"] == pytest.approx({"0": 0.4, "1": 0.6})
    assert row["spent"]["cpu_seconds"] == 20.0
    head, line, shown = markdown([row])
    assert head.count("|") == line.count("|") == shown.count("|")
    assert shown.startswith("| `dpo` | 0.500 ± 0.200 | 0.400, 0.600 | 50% | 10% | 0.40 | 1.0 | 10.0 | 100 | 2k | 20 |")


@pytest.mark.parametrize(
    "words, line",
    [
        (["--methods", "dop"], "there is no method 'dop'; the methods are sft, dpo, kto, ppo, rloo, grpo"),
        (["--only", "dpo,"], "--only dpo,: there is no method ''"),
        (["--seeds", "0,one"], "--seeds 0,one: give whole numbers with commas between them, such as 0,1,2"),
    ],
)
def test_what_there_is_not_is_refused(words: list[str], line: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(compare_methods.main, [*words, "--output-dir", str(tmp_path)])
    assert refused.exit_code == 2
    assert line in refused.output
