from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data import stage_data
from data.config import DataSettings, PretrainingMixSettings
from data.encode import Encoder
from data.stage_data import StageData
from rlhf.errors import DataError
from rlhf.template import Template

STAGES = (stage_data.demonstrations, stage_data.preferences, stage_data.prompts)


def prompt_texts(data: StageData, template: Template) -> set[str]:
    rows = [*data.train, *data.held_out]
    ids = [r["prompt_ids"] if "prompt_ids" in r else r["input_ids"][: r["prompt_length"]] for r in rows]
    return {str(template.tokenizer.decode(i)) for i in ids}


def test_stages_share_no_prompt_and_leave_none_out(write, settings, pairs, template: Template) -> None:
    path = write("a.jsonl", pairs(200))
    stages = [build(settings(path), template) for build in STAGES]
    seen = [prompt_texts(s, template) for s in stages]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 200
    assert all(len(s.train) and len(s.held_out) for s in stages)
    assert not {tuple(r["prompt_ids"]) for r in stages[2].train} & {tuple(r["prompt_ids"]) for r in stages[2].held_out}


def test_rows_are_prompt_ids_and_response_ids_with_the_end_token(write, settings, template: Template) -> None:
    rows = [{"prompt": f"Name {i}", "chosen": f"Ann {i}", "rejected": "Bob", "margin": 0.25} for i in range(80)]
    path = write("a.jsonl", rows)

    def decode(ids: list[int]) -> str:
        return str(template.tokenizer.decode(ids))

    row = stage_data.demonstrations(settings(path), template).train[0]
    number = decode(row["input_ids"]).split()[2]
    assert decode(row["input_ids"][: row["prompt_length"]]) == f"Human: Name {number}\n\nAssistant:"
    assert decode(row["input_ids"][row["prompt_length"] :]) == f" Ann {number}</s>"
    assert row["length"] == len(row["input_ids"])
    assert row["source"] == path

    row = stage_data.preferences(settings(path), template).train[0]
    number = decode(row["prompt_ids"]).split()[2]
    assert decode(row["chosen_ids"]) == f" Ann {number}</s>"
    assert decode(row["rejected_ids"]) == " Bob</s>"
    assert row["margin"] == 0.25

    row = stage_data.prompts(settings(path), template).train[0]
    assert template.prompt_ids(json.loads(row["messages"])) == row["prompt_ids"]


def test_a_second_call_reads_the_cache_and_other_settings_do_not(write, settings, pairs, template, monkeypatch) -> None:
    path = write("a.jsonl", pairs(60))
    first = stage_data.preferences(settings(path), template)
    other = stage_data.preferences(settings(path, max_response_length=20), template)
    assert other.report["train"]["fingerprint"] != first.report["train"]["fingerprint"]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing needs to be tokenised again")

    monkeypatch.setattr(Encoder, "__call__", refuse)
    again = stage_data.preferences(settings(path), template)
    assert list(again.train) == list(first.train)
    # the same content in another place is the same data
    moved = Path(path).rename(Path(path).with_name("b.jsonl"))
    assert [r["prompt_ids"] for r in stage_data.preferences(settings(str(moved)), template).train] == [
        r["prompt_ids"] for r in first.train
    ]
    # and other content under the old name is not
    write("b.jsonl", pairs(61))
    with pytest.raises(AssertionError, match="again"):
        stage_data.preferences(settings(str(moved)), template)


def test_a_source_that_is_read_another_way_is_tokenised_anew(write, settings, pairs, template: Template) -> None:
    """Tokens used to be found by the source's bytes and the order of its rows alone: where few rows had the same order
    with other columns, a run trained on the responses that an earlier one had taken for the better."""
    path = write("a.jsonl", pairs(2))

    def chosen(columns: str) -> str:
        data = stage_data.preferences(settings(path, data_split="0,1,0", eval_ratio=1e-9, columns=columns), template)
        return str(template.tokenizer.decode(data.train[0]["chosen_ids"]))

    assert chosen("prompt=prompt,chosen=chosen,rejected=rejected").startswith(" yes")
    assert chosen("prompt=prompt,chosen=rejected,rejected=chosen").startswith(" no")


def test_eval_data_path_is_held_out_of_training(write, settings, pairs, template: Template) -> None:
    """A held-out file whose prompts are trained on would measure memory; those prompts leave the training rows."""
    path = write("a.jsonl", pairs(100))
    held_out = write("b.jsonl", [*pairs(30), *pairs(5, "other")])
    stages = [build(settings(path, eval_data_path=[held_out]), template) for build in STAGES]
    assert [len(s.held_out) for s in stages] == [35, 35, 35]
    assert sum(len(s.train) for s in stages) == 70
    assert sum(s.report["duplicates"]["training_rows_left_out_as_held_out"] for s in stages) == 30


def test_a_weight_of_held_out_rows_does_not_change_the_blend(write, settings, pairs, template: Template) -> None:
    """It used to turn "every row of every source" into equal shares."""
    first, second = write("a.jsonl", pairs(100)), write("b.jsonl", pairs(20, "other"))
    held_out = write("c.jsonl", pairs(9, "third"))
    values = {"data_split": "0,1,0", "eval_data_path": [f"{held_out}:2"]}
    data = stage_data.preferences(settings(first, second, **values), template)
    assert [s["train"] for s in data.report["sources"]] == [100, 20, 0]


def test_the_report_counts_sources_weights_and_repeats(write, settings, pairs, template: Template) -> None:
    first, second = write("a.jsonl", pairs(100)), write("b.jsonl", [*pairs(10), *pairs(90, "other")])
    data = stage_data.preferences(settings(f"{first}:3", f"{second}:1", eval_ratio=0.2), template)
    report = data.report
    assert [s["weight"] for s in report["sources"]] == [3.0, 1.0]
    assert report["duplicates"]["prompts_in_several_sources"] == 10
    a, b = (s["train"] for s in report["sources"])
    assert a == pytest.approx(3 * b, abs=2)
    assert report["train"]["rows"] == len(data.train) == a + b
    # a prompt's rows that are the same in both sources come once
    assert report["duplicates"]["repeated_rows_left_out"] > 0
    everything = [tuple(r["prompt_ids"]) for r in [*data.train, *data.held_out]]
    assert len(everything) == len(set(everything))


def test_a_stage_without_rows_says_what_to_change(write, settings, pairs, template: Template) -> None:
    path = write("a.jsonl", pairs(50))
    with pytest.raises(DataError, match=r"stage 2 has no train rows.*data_split=1,0,0"):
        stage_data.preferences(settings(path, data_split="1,0,0"), template)
    only_prompts = write("b.jsonl", [{"prompt": f"q {i}"} for i in range(50)])
    with pytest.raises(DataError, match="no rows with chosen and rejected"):
        stage_data.preferences(settings(only_prompts), template)


def test_prompts_come_once_however_many_pairs_they_have(write, settings, template: Template) -> None:
    rows = [{"prompt": f"q {i % 40}", "chosen": f"a {i}", "rejected": "b"} for i in range(160)]
    path = write("a.jsonl", rows)
    data = stage_data.prompts(settings(path, data_split="0,0,1"), template)
    assert len(data.train) + len(data.held_out) == 40


def test_pretraining_rows_are_full_blocks_joined_by_eos(write, tmp_path: Path, template: Template) -> None:
    path = write("a.jsonl", [{"text": f"some plain text {i}"} for i in range(40)])
    mix = PretrainingMixSettings(ptx_data=[path], ptx_length=16, data_cache_dir=tmp_path / "cache")
    rows = stage_data.pretraining(mix, template.tokenizer)
    assert {len(r["input_ids"]) for r in rows} == {16}
    text = template.tokenizer.decode([i for r in rows for i in r["input_ids"]])
    assert text.count("</s>") == pytest.approx(40, abs=1)
    assert "some plain text 7</s>" in text


def test_a_small_set_still_holds_out_a_prompt(write, settings, pairs, template: Template) -> None:
    path = write("a.jsonl", pairs(9))
    data = stage_data.preferences(settings(path, data_split="0,1,0", eval_ratio=1e-9), template)
    assert (len(data.train), len(data.held_out)) == (7, 2)


def test_when_length_drops_everything_the_reason_is_named(write, settings, pairs, template: Template) -> None:
    with pytest.raises(DataError, match=r"no train rows: all were dropped \(.* × response longer than max_response"):
        stage_data.preferences(settings(write("a.jsonl", pairs(30)), max_response_length=3), template)


def test_settings_are_needed(settings: Callable[..., DataSettings], template: Template) -> None:
    with pytest.raises(DataError, match="--data-path"):
        stage_data.prompts(settings(), template)


def test_losing_many_rows_warns(write, settings, template: Template, capsys) -> None:
    rows = [{"prompt": f"q {i}", "chosen": "a" * (30 if i % 4 == 0 else 3), "rejected": "b"} for i in range(400)]
    path = write("a.jsonl", rows)
    data = stage_data.preferences(settings(path, max_response_length=10), template)
    out, err = capsys.readouterr()
    dropped = data.report["train"]["dropped"]["response longer than max_response_length"]
    assert f"train rows left out: {dropped} × response longer than max_response_length" in out
    assert f"warning: stage 2 loses {dropped} of {dropped + len(data.train)} train rows (" in err
    stage_data.preferences(settings(path, max_response_length=40), template)
    assert "loses" not in capsys.readouterr().err


def test_the_shape_and_the_blend_are_said_aloud(write, settings, pairs, template: Template, capsys) -> None:
    path = write("a.jsonl", [*pairs(60), {"prompt": "bad", "chosen": 3, "rejected": "x"}])
    stage_data.demonstrations(settings(f"{path}:2", skip_bad_rows=True), template)
    out, err = capsys.readouterr()
    assert f"{path}: preference pairs: prompt, chosen, rejected (61 rows)" in out
    assert "Data of stage 1 (split 2,4,4)" in out
    assert f"{path}: 1 bad rows were left out (1 × chosen is a number, not text)" in err


def test_a_source_of_one_stage_serves_that_stage_alone(write, settings, pairs, template: Template) -> None:
    """Demonstrations and prompts beside pairs: stage 2 sees the pairs, and a prompt stays in its stage."""
    some = write("a.jsonl", pairs(90))
    answers = write("b.jsonl", [{"prompt": f"d {i}", "completion": "y"} for i in range(90)])
    asked = write("c.jsonl", [{"prompt": f"p {i}"} for i in range(90)])
    stages = [build(settings(some, answers, asked), template) for build in STAGES]
    trained = [[s["train"] + s["held_out"] for s in stage.report["sources"]] for stage in stages]
    assert trained[0][2] == trained[1][1] == trained[1][2] == 0
    assert all(n > 0 for n in (*trained[0][:2], trained[1][0], *trained[2]))


def test_packed_training_rows_hold_every_demonstration(write, settings, pairs, template: Template) -> None:
    from data.packing import PackedRows

    path = write("a.jsonl", pairs(80))
    plain = stage_data.demonstrations(settings(path, data_split="1,0,0"), template)
    data = stage_data.demonstrations(settings(path, data_split="1,0,0"), template, packing=True)
    assert isinstance(data.train, PackedRows)
    assert len(data.train) < len(plain.train) / 4
    assert data.report["train"]["packs"] == len(data.train)
    assert data.train.lengths.tolist() == [row["length"] for row in data.train]
    whole = {tuple(row["input_ids"]) for row in plain.train}
    members = []
    for row in data.train:
        ids = row["input_ids"]
        for length in row["lengths"]:
            members.append(tuple(ids[:length]))
            ids = ids[length:]
    assert set(members) == whole
    assert len(members) == len(plain.train)
    assert len(data.held_out) == len(plain.held_out)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    from rlhf.errors import ModelError
    from rlhf.template import install_template
    from tests.helpers.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        install_template(tokenizer)


def test_bad_rows_stop_a_run_even_when_an_earlier_one_skipped_them(write, settings, pairs, template: Template) -> None:
    path = write("a.jsonl", [*pairs(60), "{"])
    stage_data.preferences(settings(path, skip_bad_rows=True), template)
    with pytest.raises(DataError, match=r"line 61: is not valid JSON"):
        stage_data.preferences(settings(path), template)
