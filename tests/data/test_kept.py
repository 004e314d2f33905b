"""Columns of the data that reward functions read: on their way through split, blend, store and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data import preflight
from data.config import DataSettings
from data.example import Example, RowError, ask
from data.kept import Kept, kept_json, read_kept
from data.sources import parse
from data.stage_data import prompts
from data.store import open_store
from rlhf.errors import DataError
from rlhf.template import Template, install_template
from tests.helpers.tiny import tiny_tokenizer

SOLUTION = Kept(("solution",), needed=(("solution", "--reward f.py:f"),))


@pytest.fixture
def template() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(cache: Path, *paths: str, **changes: Any) -> DataSettings:
    return DataSettings(data_path=list(paths), data_cache_dir=cache, data_split="0,0,1", eval_ratio=0.3, **changes)


def test_columns_stay_with_their_prompt(tmp_path: Path, template: Template) -> None:
    """Through two blended sources, the split and the cache: lists, numbers, mappings and nothing."""
    values = {f"Question {i}?": [i, 2.5, "ä\n", {"deep": [None, True]}] for i in range(40)}
    rows = [{"prompt": question, "solution": value, "other": 1} for question, value in values.items()]
    first, second = write(tmp_path / "a.jsonl", rows[:25]), write(tmp_path / "b.jsonl", rows[25:])
    for _ in range(2):  # built, then read from the cache
        data = prompts(settings(tmp_path / "cache", f"{first}:2", f"{second}:1"), template, kept=SOLUTION)
        for part in (data.train, data.held_out):
            assert len(part) > 3
            for row in part:
                is_text, columns = read_kept(row["kept"])
                assert is_text
                assert columns == {"solution": values[json.loads(row["messages"])[-1]["content"]]}


def test_no_row_changes_its_place_for_a_column(tmp_path: Path, template: Template) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"Question {i}?", "solution": i} for i in range(40)])
    plain = prompts(settings(tmp_path / "cache", path), template)
    kept = prompts(settings(tmp_path / "cache", path), template, kept=SOLUTION)
    assert [row["messages"] for row in plain.train] == [row["messages"] for row in kept.train]
    assert [row["messages"] for row in plain.held_out] == [row["messages"] for row in kept.held_out]
    assert "kept" not in plain.train[0]


def test_columns_that_no_function_reads_are_not_stored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Q?", "solution": 1, "huge": "x" * 1000}])
    source, reading = parse(path), settings(tmp_path / "cache", path)
    assert "kept" not in open_store(source, reading).dataset.column_names
    assert "huge" not in open_store(source, reading, kept=SOLUTION).dataset[0]["kept"]
    assert "huge" in open_store(source, reading, kept=Kept(everything=True)).dataset[0]["kept"]


def test_of_rows_with_one_prompt_the_first_counts(tmp_path: Path, template: Template) -> None:
    rows = [{"prompt": f"Q{i % 20}?", "solution": i} for i in range(40)]
    data = prompts(settings(tmp_path / "cache", write(tmp_path / "a.jsonl", rows)), template, kept=SOLUTION)
    found = sorted(read_kept(row["kept"])[1]["solution"] for part in (data.train, data.held_out) for row in part)
    assert found == list(range(20))


def test_every_pair_of_a_row_has_its_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "answers": ["a", "b", "c"], "solution": 3}]
    store = open_store(parse(write(tmp_path / "a.jsonl", rows)), settings(tmp_path / "cache"), kept=SOLUTION)
    assert [read_kept(text)[1] for text in store.dataset["kept"]] == [{"solution": 3}] * 3


@pytest.mark.parametrize(
    "row, prompt, is_text",
    [
        ({"prompt": "Q?"}, ask("Q?"), True),
        ({"prompt": "Q?", "tests": [{"in": 1}]}, ask("Q?"), True),
        ({"prompt": [{"role": "user", "content": "Q?"}]}, ask("Q?"), False),
        ({"conversations": [{"from": "human", "value": "Q?"}]}, ask("Q?"), False),
        ({"prompt": "Q?", "system": "Be brief."}, ask("Q?", system="Be brief."), False),
    ],
)
def test_a_prompt_is_text_where_the_data_have_text(row: dict[str, Any], prompt: Any, is_text: bool) -> None:
    """A text with a system turn has become a conversation."""
    assert read_kept(kept_json(row, Example(prompt), Kept())) == (is_text, {})


def test_values_that_json_lacks() -> None:
    import datetime
    import decimal

    import numpy as np

    values = {
        "a": np.array([1, 2]), "b": np.float32(0.5), "c": decimal.Decimal("1.5"), "d": datetime.date(2024, 7, 26),
        "e": (1, 2), "f": float("inf"),
    }  # fmt: skip
    found = read_kept(kept_json(values, Example(ask("Q?")), Kept(everything=True)))[1]
    assert found == {"a": [1, 2], "b": 0.5, "c": 1.5, "d": "2024-07-26", "e": [1, 2], "f": float("inf")}
    with pytest.raises(RowError, match="cannot be kept for the rewards: a column holds bytes"):
        kept_json({"a": b"\0"}, Example(ask("Q?")), Kept(everything=True))


def test_a_column_that_is_read_is_not_called_unused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Q?", "solution": 1, "answer": 2}])
    store = open_store(parse(path), settings(tmp_path / "cache"), kept=SOLUTION)
    assert list(store.info["remarks"]) == ["column 'answer' is not used"]


def test_a_column_that_is_not_there_is_told_with_the_nearest(tmp_path: Path, template: Template) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"Q{i}?", "solutions": i} for i in range(9)])
    wanted = settings(tmp_path / "cache", path)
    line = (
        "--reward f.py:f reads the column 'solution', which the data do not have; did you mean 'solutions'? "
        "(they have prompt, solutions)"
    )
    assert preflight.problems(wanted, stage=3, kept=SOLUTION) == [line]
    with pytest.raises(DataError) as error:  # a source of the hub is first seen here
        prompts(wanted, template, kept=SOLUTION)
    assert error.value.problems == [line]


def test_one_of_several_sources_may_lack_a_column(tmp_path: Path, template: Template) -> None:
    first = write(tmp_path / "a.jsonl", [{"prompt": f"Q{i}?", "solution": i} for i in range(9)])
    second = write(tmp_path / "b.jsonl", [{"prompt": f"R{i}?"} for i in range(9)])
    wanted = settings(tmp_path / "cache", first, second)
    assert preflight.problems(wanted, stage=3, kept=SOLUTION) == []
    data = prompts(wanted, template, kept=SOLUTION)
    lacking = [row for row in data.train if json.loads(row["messages"])[0]["content"].startswith("R")]
    assert lacking
    assert all(read_kept(row["kept"]) == (True, {}) for row in lacking)


def test_held_out_rows_need_the_column_too(tmp_path: Path) -> None:
    """The evaluation after stage 3 asks the same functions about them."""
    first = write(tmp_path / "a.jsonl", [{"prompt": f"Q{i}?", "solution": i} for i in range(9)])
    held_out = write(tmp_path / "b.jsonl", [{"prompt": f"R{i}?"} for i in range(9)])
    wanted = settings(tmp_path / "cache", first, eval_data_path=[held_out])
    assert "reads the column 'solution'" in preflight.problems(wanted, stage=3, kept=SOLUTION)[0]
