"""Known datasets, each on rows of its real schema: which decoded tokens count, and what gives nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.adapters import KNOWN, adapter_for, load_adapter
from data.example import Placed, RowError
from data.sources import parse
from rlhf.errors import DataError
from tests.helpers.known_datasets import CASES, OASST, TEXTS


def examples(name: str, rows: list[dict[str, Any]]) -> list[Any]:
    shape = KNOWN[name]
    placed: list[Placed] = [(f"row {i}", row) for i, row in enumerate(rows)]
    prepared = shape.prepare(placed) if shape.prepare else placed
    return [e for _, row in prepared if not isinstance(row, RowError) for e in shape.adapt(row)]


@pytest.mark.parametrize("name", CASES)
def test_a_known_dataset_gives_these_tokens(name: str, counted) -> None:
    rows, expected = CASES[name]
    assert counted(examples(name, rows)) == expected


@pytest.mark.parametrize("name", TEXTS)
def test_a_known_dataset_gives_these_texts(name: str) -> None:
    """The lines of wikitext become articles; squad gives its contexts."""
    rows, expected = TEXTS[name]
    assert [example.text for example in examples(name, rows)] == expected


def test_every_known_dataset_is_tested() -> None:
    assert set(KNOWN) == {*CASES, *TEXTS}


def test_a_message_tree_in_pieces_is_refused() -> None:
    with pytest.raises(RowError, match=r"message a\.2 has no parent in its tree"):
        examples("OpenAssistant/oasst1", [OASST[0], OASST[8], OASST[2]])


def test_second_best_replies_are_no_demonstrations() -> None:
    assert [e.demonstrates for e in examples("OpenAssistant/oasst1", OASST)] == [True, True, False, True]


def test_names_are_exact() -> None:
    """A dataset used to be taken for another one whose name it contained."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}

    def says(name: str) -> str:
        return adapter_for(parse(name), [row], columns="", data_adapter="").says

    assert says("Dahoas/rm-static") == KNOWN["Dahoas/rm-static"].says
    assert says("someone/Dahoas-rm-static") == "preference pairs: prompt, chosen, rejected"
    assert says("Dahoas/rm-static2") == "preference pairs: prompt, chosen, rejected"


def test_an_adapter_of_the_users_own(tmp_path: Path, write, settings, template) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from data.example import Example, ask\n"
        "def to_example(row):\n"
        "    yield Example(ask(row['q']), row['a'], row['b'])\n"
    )
    path = write("a.jsonl", [{"q": f"q{i}", "a": f"a{i}", "b": "b"} for i in range(60)])
    from data.stage_data import preferences

    data = preferences(settings(path, data_adapter=f"{code}:to_example"), template)
    assert data.report["sources"][0]["shape"].startswith("read by ")
    assert template.tokenizer.decode(data.train[0]["chosen_ids"]).startswith(" a")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "write it as file.py:function"),
        ("Dahoas/rm-statik", "the name of a known dataset .*did you mean 'Dahoas/rm-static'"),
        ("absent.py:f", "absent.py does not exist"),
        ("{folder}/broken.py:f", "broken.py fails on import: ZeroDivisionError: division by zero"),
        ("{folder}/mine.py:to_exampel", "has no function 'to_exampel'; did you mean 'to_example'"),
    ],
)
def test_an_adapter_that_cannot_be_used(spec: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def to_example(row): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(DataError, match=message):
        load_adapter(spec.format(folder=tmp_path))
