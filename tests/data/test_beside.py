"""Thoughts and options of the chat template, from a file to the tokens of each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import check, show, stage_data
from data.config import DataSettings
from data.reading import Reader
from data.sources import parse
from rlhf.errors import DataError
from rlhf.template import Template
from tests.helpers.templates import EXACT, THOUGHTS, template_of, unmarked

NO_BLOCK = "<think>\n\n</think>\n\n"
HEAD = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def qwen() -> Template:
    return template_of(THOUGHTS["Qwen3"][0])


def talk(*texts: str, **fields: str) -> list[dict[str, str]]:
    """Question, answer, question, …; the last answer has the fields."""
    roles = ["user", "assistant"] * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [*turns[:-1], {**turns[-1], **fields}]


def rows_of(data: stage_data.StageData) -> list[Any]:
    return [*data.train, *data.held_out]  # type: ignore[misc]


def learned(data: stage_data.StageData, template: Template) -> list[tuple[str, str]]:
    """Of all rows of stage 1, what is not learned and what is."""
    found = []
    for row in rows_of(data):
        mask = np.zeros(len(row["input_ids"]), dtype=bool)
        for start, end in zip(row["learned"][::2], row["learned"][1::2], strict=True):
            mask[start:end] = True
        ids, decode = np.array(row["input_ids"]), template.tokenizer.decode
        found.append((str(decode(ids[~mask])), str(decode(ids[mask]))))
    return sorted(found)


def of_stage(settings: Any, path: str, stage: int) -> DataSettings:
    split = ",".join("1" if stage == number else "0" for number in (1, 2, 3))
    return settings(path, data_split=split, eval_ratio=0.3)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "thoughts"])
def test_thoughts_of_the_last_turn_are_learned_behind_a_prompt_that_leaves_them_room(
    write, settings, qwen: Template, field: str
) -> None:
    """They were said and left out, behind a prompt with an empty block of thoughts."""
    rows = [{"messages": talk(f"q{i}", f"a{i}", **({field: f"t{i}"} if i % 2 else {}))} for i in range(6)]
    data = stage_data.demonstrations(of_stage(settings, write("a.jsonl", rows), 1), qwen)
    assert learned(data, qwen) == sorted(
        (HEAD.format(f"q{i}"), f"<think>\nt{i}\n</think>\n\na{i}<|im_end|>")
        if i % 2
        else (HEAD.format(f"q{i}") + NO_BLOCK, f"a{i}<|im_end|>")
        for i in range(6)
    )
    assert data.report["sources"][0]["remarks"] == {}


def test_a_turn_whose_thoughts_are_dropped_later_has_a_row_of_its_own(write, settings, qwen: Template) -> None:
    turns = [*talk("q", "a", reasoning_content="t"), *talk("r", "b", reasoning_content="u")]
    path = write("a.jsonl", [{"messages": turns}, {"messages": talk("x", "y")}])
    found = learned(stage_data.demonstrations(of_stage(settings, path, 1), qwen), qwen)
    whole = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n" + HEAD.format("r")
    assert (HEAD.format("q"), "<think>\nt\n</think>\n\na<|im_end|>") in found
    assert (whole, "<think>\nu\n</think>\n\nb<|im_end|>") in found


def test_a_template_that_keeps_thoughts_learns_them_in_one_row(write, settings) -> None:
    template = template_of(THOUGHTS["always thinks"][0])
    turns = [*talk("q", "a", reasoning_content="t"), *talk("r", "b", reasoning_content="u")]
    path = write("a.jsonl", [{"messages": turns}, {"messages": talk("x", "y", thinking="z")}])
    found = learned(stage_data.demonstrations(of_stage(settings, path, 1), template), template)
    assert [said for _, said in found] == [
        "t\n</think>\n\na<|im_end|>u\n</think>\n\nb<|im_end|>", "z\n</think>\n\ny<|im_end|>",
    ]  # fmt: skip


def test_by_marks_thoughts_are_learned_as_the_template_says(write, settings) -> None:
    template = template_of(THOUGHTS["DeepSeek"][0])
    path = write("a.jsonl", [{"messages": talk(f"q{i}", f"a{i}", reasoning_content="t")} for i in range(4)])
    found = learned(stage_data.demonstrations(of_stage(settings, path, 1), template), template)
    assert [said for _, said in found] == [f"<think>t</think>a{i}<|end|>" for i in range(4)]


def test_a_pair_has_one_prompt_and_thoughts_in_both_or_one(write, settings, qwen: Template) -> None:
    rows = [
        {"chosen": talk(f"q{i}", "a", reasoning_content="t"), "rejected": talk(f"q{i}", "b", **more)}
        for i, more in enumerate([{}, {"thinking": "u"}] * 3)
    ]
    rows.append({"chosen": talk("same", "x", reasoning_content="good"), "rejected": talk("same", "x", thinking="bad")})
    data = stage_data.preferences(of_stage(settings, write("a.jsonl", rows), 2), qwen)
    decode = qwen.tokenizer.decode
    found = {
        str(decode(row["prompt_ids"])): (decode(row["chosen_ids"]), decode(row["rejected_ids"]))
        for row in rows_of(data)
    }
    assert found[HEAD.format("q0")] == ("<think>\nt\n</think>\n\na<|im_end|>", NO_BLOCK + "b<|im_end|>")
    assert found[HEAD.format("q1")][1] == "<think>\nu\n</think>\n\nb<|im_end|>"
    assert found[HEAD.format("same")][1] == "<think>\nbad\n</think>\n\nx<|im_end|>"  # they differ in their thoughts


def test_single_responses_have_their_own_prompt(write, settings, qwen: Template) -> None:
    rows = [{"chosen": talk(f"q{i}", "a", reasoning_content="t"), "rejected": talk(f"q{i}", "b")} for i in range(8)]
    data = stage_data.unpaired(of_stage(settings, write("a.jsonl", rows), 2), qwen)
    for row in rows_of(data):
        asked, said = (str(qwen.tokenizer.decode(row[name])) for name in ("prompt_ids", "response_ids"))
        assert asked.endswith("assistant\n" if row["desirable"] else NO_BLOCK)
        assert said == ("<think>\nt\n</think>\n\na<|im_end|>" if row["desirable"] else "b<|im_end|>")


def test_prompts_of_stage_3_leave_room_as_their_rows_do(write, settings, qwen: Template) -> None:
    """The actor is sampled behind what it was trained behind; the judge and the evaluation get the same options."""
    rows = [{"prompt": "plain"}, {"prompt": "off", "chat_template_kwargs": {"enable_thinking": False}}]
    rows += [{"prompt": "on", "enable_thinking": True}, {"messages": talk("t", "a", reasoning_content="t")}]
    rows += [{"prompt": "text", "template_kwargs": '{"enable_thinking": true, "x": null}'}]
    paths = [write(f"{i}.jsonl", [row]) for i, row in enumerate(rows)]
    data = stage_data.prompts(settings(*paths, data_split="0,0,1", eval_ratio=0.3), qwen)
    found = {}
    for row in rows_of(data):
        text = str(qwen.tokenizer.decode(row["prompt_ids"]))
        found[text.split("\n")[1].split("<")[0]] = text.endswith(NO_BLOCK)
    assert found == {"plain": True, "off": True, "on": False, "t": False, "text": False}


def test_a_template_that_knows_no_thoughts_is_said_by_run_check_and_show(
    write, settings, run, tmp_path: Path, capfd
) -> None:
    template, qwen = template_of(unmarked(EXACT["ChatML"])), template_of(THOUGHTS["Qwen3"][0])
    for name, each in (("chatml", template), ("qwen", qwen)):
        each.tokenizer.save_pretrained(tmp_path / name)
    path = write("a.jsonl", [{"messages": talk(f"q{i}", f"a{i}", reasoning_content="t")} for i in range(40)])
    data = stage_data.demonstrations(settings(path), template)
    told = "row without its thoughts, which the chat template does not write there"
    cut = data.report["train"]["cut"]
    assert cut == {told: data.report["train"]["rows"]}
    assert f"train rows kept: {cut[told]} × {told}" in capfd.readouterr().out
    assert all("t" not in said for _, said in learned(data, template))
    options = ("--data-path", path, "--model", str(tmp_path / "chatml"))
    assert "40 of 40 chosen responses (100.0%) lose their thoughts" in run(check, *options)[1]
    assert told in run(show, *options, "--stage", "1")[1]
    options = ("--data-path", path, "--model", str(tmp_path / "qwen"))
    assert "thoughts" not in run(check, *options)[1]
    assert "  counted  <think>" in run(show, *options, "--stage", "1")[1]


def test_thoughts_are_never_cut(write, settings, qwen: Template) -> None:
    """A response that was cut would teach to end in the midst of a thought."""
    rows = [{"messages": talk(f"q{i}", "a", reasoning_content="t" * (99 if i == 3 else 1))} for i in range(8)]
    limits = {"max_response_length": 60, "response_truncation": "keep_start"}
    data = stage_data.demonstrations(settings(write("a.jsonl", rows), data_split="1,0,0", **limits), qwen)
    dropped = [data.report[part]["dropped"] for part in ("train", "held_out") if data.report[part]["dropped"]]
    assert dropped == [{"response longer than max_response_length": 1}]


def test_answers_that_differ_in_their_thoughts_are_two(write, settings, qwen: Template) -> None:
    """Several workings of one sum have the same answer; all but one were left out as repeats."""
    rows = [{"messages": talk("q", "4", reasoning_content=f"t{i % 2}")} for i in range(6)]
    rows += [{"messages": talk(f"x{i}", "4")} for i in range(6)]
    data = stage_data.demonstrations(of_stage(settings, write("a.jsonl", rows), 1), qwen)
    assert [said for _, said in learned(data, qwen) if "think>\nt" in said] == [
        "<think>\nt0\n</think>\n\n4<|im_end|>", "<think>\nt1\n</think>\n\n4<|im_end|>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "chat_template_kwargs is a list, not a mapping of options of the chat template"),
        ("on", "chat_template_kwargs is text, not a mapping of options of the chat template"),
        ({"tokenize": True}, "chat_template_kwargs sets tokenize, which is no option of a chat template; leave it out"),
    ],
)
def test_options_that_are_none_are_refused(write, settings, value: Any, message: str) -> None:
    path = write("a.jsonl", [{"prompt": "q", "completion": "a", "chat_template_kwargs": value}])
    with pytest.raises(DataError) as error:
        list(Reader(parse(path), settings(path)))
    assert f"{path}, line 1: {message}" in error.value.problems


def test_the_announcement_names_the_columns(write, settings) -> None:
    path = write("a.jsonl", [{"input": "q", "content": "a", "reasoning_content": "t", "reasoning_effort": "low"}])
    reader = Reader(parse(path), settings(path))
    [(_, example)] = list(reader)
    assert reader.says.endswith("reasoning_content, reasoning_effort")
    assert example.prompt[0].get("options") == {"reasoning_effort": "low"}
    assert getattr(example.chosen, "thoughts", "") == "t"
