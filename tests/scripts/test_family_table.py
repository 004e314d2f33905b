"""docs/models.md names the families of the script and holds no "wrong" cell, and runs of the table find none."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from scripts import family_table
from scripts.family_bench import (
    COLUMNS,
    EXPORT,
    GREEDY,
    OK,
    PACKING,
    PARALLEL,
    PPO,
    REFUSED,
    REWARD,
    SFT,
    WRONG,
    Bench,
    Cell,
)
from scripts.family_checks import tried, without_a_run
from scripts.family_configs import DROPOUT, FAMILIES, SAMPLE, WINDOW
from scripts.family_plain import Wrong, exact, rounding
from scripts.family_table import PAGE, page, rows_of

STATE = re.compile(r"ok|refused \d+|wrong \d+|–")


def _table_of(text: str) -> dict[str, list[str]]:
    """Family → its cells, from the page's table."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    start = next(index for index, row in enumerate(rows) if row[0] == "family")
    assert rows[start][1:] == list(COLUMNS)
    return {row[0]: row[1:] for row in rows[start + 1 :] if len(row) == len(COLUMNS) + 1}


def _lines_of(text: str) -> dict[str, list[str]]:
    """The same with the line of the list in place of its number, which depends on the rows before."""
    lines = dict(re.findall(r"^(\d+)\. (\S.*)$", text, flags=re.MULTILINE))
    return {
        name: [re.sub(r"\d+$", lambda number: lines[number[0]], cell) for cell in cells]
        for name, cells in _table_of(text).items()
    }


def test_the_slow_test_tries_a_third_of_the_families() -> None:
    assert set(SAMPLE) <= set(FAMILIES)
    assert len(set(SAMPLE)) == len(FAMILIES) // 3


def test_the_page_names_the_families_of_the_script() -> None:
    rows = _table_of(PAGE.read_text(encoding="utf-8"))
    assert list(rows) == list(FAMILIES), "run python -m scripts.family_table"
    assert len({family.model_type for family in FAMILIES.values()}) >= 45
    assert all(STATE.fullmatch(cell) for cells in rows.values() for cell in cells)


def test_no_cell_of_the_page_is_wrong() -> None:
    wrong = [f"{name}, {column}" for name, cells in _table_of(PAGE.read_text(encoding="utf-8")).items()
             for column, cell in zip(COLUMNS, cells, strict=True) if cell.startswith(WRONG)]  # fmt: skip
    assert not wrong


def test_every_refusal_has_its_line() -> None:
    """A number in a cell leads to a line of the list, and every line is that of some cell."""
    text = PAGE.read_text(encoding="utf-8")
    used = {int(cell.split()[1]) for cells in _table_of(text).values() for cell in cells if " " in cell}
    listed = [int(number) for number in re.findall(r"^(\d+)\. \S", text, flags=re.MULTILINE)]
    assert listed == list(range(1, len(listed) + 1))
    assert used == set(listed)


def test_the_page_numbers_the_plans_words_once() -> None:
    """Equal lines of different types share a number."""
    refused = "--model MODEL: {} cannot do this; use another"
    table = {
        "llama": dict.fromkeys(COLUMNS, Cell(OK)) | {PPO: Cell("refused", refused.format("llama"))},
        "gpt2": dict.fromkeys(COLUMNS, Cell("refused", refused.format("gpt2"))) | {SFT: Cell(WRONG, "off by 1")},
    }
    rows = _table_of(page(table))
    assert rows["llama"] == ["ok", "ok", "refused 1", *["ok"] * 5]
    assert rows["gpt2"] == ["wrong 2", *["refused 1"] * 7]
    assert "\n1. --model MODEL: TYPE cannot do this; use another\n2. off by 1\n" in page(table)


@pytest.mark.parametrize("name", ["mistral, windows", "gemma3_text", "gpt_oss", "starcoder2"])
def test_windows_and_dropout_bite(name: str) -> None:
    """A window shorter than the rows, and dropout above 0: without them a fault of either shows nowhere."""
    config = FAMILIES[name].config()
    assert name == "starcoder2" or config.sliding_window == WINDOW
    dropouts = [value for key, value in config.to_dict().items() if "dropout" in key]
    assert dropouts and set(dropouts) == {DROPOUT}
    model: Any = FAMILIES[name].model()
    ids = torch.arange(3, 30)[None]
    other = torch.cat([torch.tensor([[200]]), ids[:, 1:]], dim=1)
    with torch.no_grad():
        last = [model(input_ids=rows, use_cache=False).logits[0, -1] for rows in (ids, other)]
    assert torch.equal(*last) == (name == "mistral, windows")  # every layer has the window there


def test_an_unknown_family_is_refused() -> None:
    result = CliRunner().invoke(family_table.main, ["--only", "lama"], standalone_mode=False)
    assert "there is no such family; did you mean 'llama'?" in str(result.exception)


def test_what_float32_costs_the_model_itself_is_allowed_and_no_more() -> None:
    """Adapters with large weights made gemma4's logits so coarse that two right orders of sums were 1.3e-5 apart."""

    def compute(model: Any) -> torch.Tensor:
        return (model.weight * 1000 + 0.123 - model.weight * 1000).detach()  # digits are lost on the way

    plain = torch.nn.LayerNorm(1)  # its weight is 1
    cost = rounding(plain, compute)
    assert 0 < cost < 1e-4
    exact("a figure", compute(plain) + 3 * cost, compute(plain), plain, compute, tolerance=1e-9)
    for off in (5 * cost, math.nan):
        with pytest.raises(Wrong, match="a figure: off by"):
            exact("a figure", compute(plain) + off, compute(plain), plain, compute, tolerance=1e-9)


@pytest.mark.usefixtures("one_rank")
def test_a_wrong_figure_and_a_crash_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks see what they are for: a sampler that repeats itself, a dropout that is not switched off, and a
    column that raises."""
    bench = Bench(FAMILIES["gemma2"], tmp_path)
    bench.family.save(bench.base)
    assert without_a_run(bench, SFT) is None
    monkeypatch.setattr("rlhf.generation.sampler.head_logits", lambda lm, hidden: torch.zeros(len(hidden), 320))
    assert tried(bench, GREEDY).why == "5 of 5 greedy responses in a batch differ from transformers' generate"
    monkeypatch.setattr("rlhf.models.loading.remove_dropout", lambda held: None)
    assert tried(bench, EXPORT) == Cell(WRONG, "nothing was exported")
    assert tried(bench, SFT).why.startswith("loss of the first step is ")
    monkeypatch.setattr("step1_sft.main.build_engine", lambda *a, **k: 1 / 0)
    assert tried(bench, PACKING) == Cell(WRONG, "ZeroDivisionError: division by zero")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name, columns", [("qwen3", (SFT, REWARD, GREEDY)), ("gpt2", (SFT, PACKING, EXPORT))])
def test_some_cheap_cells_are_ok(name: str, columns: tuple[str, ...]) -> None:
    assert rows_of([name], columns) == {name: dict.fromkeys(columns, Cell(OK))}


@pytest.mark.process
@pytest.mark.usefixtures("one_rank")
def test_a_copy_on_two_ranks_is_ok_or_refused() -> None:
    """The ranks are processes of their own, which find the models that this one has made."""
    table = rows_of(["llama", "rwkv"], (PARALLEL,))
    assert table["llama"][PARALLEL] == Cell(OK)
    assert table["rwkv"][PARALLEL].state == REFUSED


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("names", [SAMPLE[i::3] for i in range(3)], ids=lambda names: names[0])
def test_no_cell_is_wrong(names: tuple[str, ...]) -> None:
    """A third of the families in all columns, in three parts that run side by side; what the page says of them is what
    the runs say."""
    table = rows_of(names, COLUMNS)
    assert not {(name, column): cell.why for name, row in table.items() for column, cell in row.items()
                if cell.state == WRONG}  # fmt: skip
    assert all(PARALLEL in row for row in table.values())
    text = PAGE.read_text(encoding="utf-8")
    said = {name: cells for name, cells in _lines_of(text).items() if name in names}
    assert _lines_of(page(table)) == said
