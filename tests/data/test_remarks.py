"""What the user is told of a source: nothing of columns that another stage reads."""

from __future__ import annotations

from data import check, show
from data.stage_data import demonstrations
from rlhf.template import Template

ROWS = [
    {"prompt": f"{i} + 1?", "chosen": f"It is {i + 1}.", "solution": f"{i + 1}", "ground_truth": "x", "s.lution": "y"}
    for i in range(30)
]


def test_columns_that_another_stage_reads_are_not_called_unused(write, settings, template: Template) -> None:
    path = write("a.jsonl", ROWS)
    alone = demonstrations(settings(path), template).report["sources"][0]["remarks"]
    assert [what for what in alone if "'solution' is not used" in what]
    beside = demonstrations(settings(path, read_elsewhere=["solution"]), template).report["sources"][0]["remarks"]
    assert [what for what in alone if what not in beside] == [what for what in alone if "'solution'" in what]
    assert "column 'ground_truth' is not used" in beside
    everything = demonstrations(settings(path, read_elsewhere=["*"]), template).report["sources"][0]["remarks"]
    assert everything == {}


def test_show_and_check_are_told_it_by_a_flag(run, write, capfd, tmp_path) -> None:
    options = ("--data-path", write("a.jsonl", ROWS), "--model", str(tmp_path / "tokenizer"))
    told = ("--read-elsewhere", "solution")
    assert "'solution' is not used" in run(check, *options)[1]
    assert "'solution' is not used" not in run(check, *options, *told)[1]
    for more, said in (((), True), (told, False)):
        show.main.main([*options, *more], standalone_mode=False)
        assert ("'solution' is not used" in capfd.readouterr().err) == said
