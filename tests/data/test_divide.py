"""Which rows a stage gets: single responses that are good or bad, for KTO. Stages 1 to 3: `test_stage_data.py`."""

from __future__ import annotations

import pytest

from data import stage_data
from data.rows import Rows
from rlhf.errors import DataError
from rlhf.template import Template


def all_of(data: stage_data.StageData, template: Template) -> list[tuple[str, str, bool]]:
    """(question, response, whether it is good) of all rows, sorted."""
    decode = template.tokenizer.decode
    return sorted(
        (
            str(decode(row["prompt_ids"])).removeprefix("Human: ").removesuffix("\n\nAssistant:"),
            str(decode(row["response_ids"])).strip().removesuffix("</s>"),
            row["desirable"],
        )
        for row in [*data.train, *data.held_out]
    )


ALL = {"data_split": "0,1,0"}


def test_a_pair_gives_one_of_each_and_a_label_one(write, settings, template: Template) -> None:
    mixed = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(20)]
    labelled = [{"prompt": f"l{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(20)]
    data = stage_data.unpaired(settings(write("a.jsonl", mixed), write("b.jsonl", labelled), **ALL), template)
    wanted = [(f"p{i}", f"c{i}", True) for i in range(20)] + [(f"p{i}", f"r{i}", False) for i in range(20)]
    wanted += [(f"l{i}", f"a{i}", i % 2 == 0) for i in range(20)]
    assert all_of(data, template) == sorted(wanted)
    assert isinstance(data.train, Rows)
    for row in data.train:
        assert row["length"] == len(row["prompt_ids"]) + len(row["response_ids"])
        assert row["prompt_length"] == len(row["prompt_ids"])
    counts = [data.report[part]["desirable"] for part in ("train", "held_out")]
    assert sum(counts) == 30


def test_both_responses_of_a_prompt_are_held_out_together(write, settings, pairs, template: Template) -> None:
    data = stage_data.unpaired(settings(write("a.jsonl", pairs(60)), **ALL, eval_ratio=0.3), template)
    inside, outside = ({tuple(row["prompt_ids"]) for row in part} for part in (data.train, data.held_out))
    assert inside and outside and not inside & outside
    assert 2 * len(inside) == len(data.train)


def test_of_ranked_answers_the_best_is_good_and_each_comes_once(write, settings, template: Template) -> None:
    """B beats C and is beaten by A: its pairs would make it good and bad, and A three times good."""
    rows = [{"prompt": f"q{i}", "answers": ["A", "B", "C", "D"]} for i in range(12)]
    data = stage_data.unpaired(settings(write("a.jsonl", rows), **ALL), template)
    wanted = [(f"q{i}", text, text == "A") for i in range(12) for text in "ABCD"]
    assert all_of(data, template) == sorted(wanted)


def test_demonstrations_are_good_unless_they_are_left_out(write, settings, pairs, template: Template) -> None:
    """A source without any bad response holds demonstrations; one with both kinds is judged, good rows included."""
    shown = write("shown.jsonl", [{"prompt": f"d{i}", "response": f"x{i}"} for i in range(10)])
    judged = write("judged.jsonl", [{"prompt": f"j{i}", "response": f"y{i}", "label": i < 5} for i in range(10)])
    with_them = all_of(stage_data.unpaired(settings(shown, judged, **ALL), template), template)
    assert [row for row in with_them if row[0].startswith("d")] == [(f"d{i}", f"x{i}", True) for i in range(10)]
    without = stage_data.unpaired(settings(shown, judged, **ALL), template, demonstrations=False)
    assert all_of(without, template) == [(f"j{i}", f"y{i}", i < 5) for i in range(10)]


def test_weights_are_those_of_the_sources(write, settings, pairs, template: Template) -> None:
    """3:1 although the first source has twice as many responses to a row; and a beginning has both kinds."""
    first, second = write("a.jsonl", pairs(300)), write("b.jsonl", pairs(300, "other"))
    data = stage_data.unpaired(settings(f"{first}:3", f"{second}:1", **ALL, max_samples=200), template)
    of_first = sum(row["source"] == first for row in data.train)
    assert 140 <= of_first <= 160
    assert 60 <= data.report["train"]["desirable"] <= 140


def test_what_teaches_nothing_is_left_out(write, settings, pairs, template: Template) -> None:
    """A pair of equal responses would be good and bad at once; an empty good response is none, a bad one may be."""
    rows = [*pairs(30), {"prompt": "same", "chosen": "x", "rejected": "x "}]
    rows += [{"prompt": "nothing good", "chosen": "", "rejected": "x"}]
    rows += [{"prompt": "nothing bad", "chosen": "x", "rejected": ""}]
    data = stage_data.unpaired(settings(write("a.jsonl", rows), **ALL), template)
    found = [row for row in all_of(data, template) if not row[0].startswith("q")]
    assert found == [("nothing bad", "", False), ("nothing bad", "x", True), ("nothing good", "x", False)]


@pytest.mark.parametrize("label, kind", [(True, "good"), (False, "bad")])
def test_one_kind_alone_is_refused(write, settings, template: Template, label: bool, kind: str) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": label} for i in range(30)]
    with pytest.raises(DataError, match=f"all train responses are {kind}: this stage needs both kinds"):
        stage_data.unpaired(settings(write("a.jsonl", rows), **ALL), template)


def test_one_kind_among_held_out_rows_is_said(write, settings, pairs, template: Template, capsys) -> None:
    path = write("a.jsonl", pairs(20))
    held_out = write("e.jsonl", [{"prompt": f"e{i}", "completion": f"a{i}", "label": 1} for i in range(5)])
    stage_data.unpaired(settings(path, **ALL, eval_data_path=[held_out]), template)
    assert "all held-out responses are good, so there are no figures that compare both" in capsys.readouterr().err


def test_nothing_is_named(write, settings, template: Template) -> None:
    path = write("a.jsonl", [{"prompt": f"q{i}"} for i in range(20)])
    with pytest.raises(DataError, match="the sources have no rows with a good or a bad response"):
        stage_data.unpaired(settings(path, **ALL), template)
