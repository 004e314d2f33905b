"""The rows of a source: turns that must not be learned, files of several shapes, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data import check, show
from data.announcement import announce
from data.config import SourceSettings
from data.example import Example
from data.preflight import problems
from data.reading import Reader
from data.sources import parse
from data.stage_data import prompts
from rlhf.errors import DataError

USER = {"role": "user", "content": "Weather?"}
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]


def answer(text: str | None = "Let me look.", **fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": text, **fields}]}


def reader_of(path: str, **settings: Any) -> tuple[Reader, list[Example]]:
    reader = Reader(parse(path), SourceSettings(**settings))
    return reader, [example for _, example in reader]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (answer(tool_calls=CALL), "turn with a tool call (tool_calls) is not learned"),
        (answer(None, tool_calls=CALL), "turn with a tool call (tool_calls) is not learned"),
        (answer(weight=0), "turn with weight=0 is not learned"),
        (answer(weight=0.0), "turn with weight=0.0 is not learned"),
        (answer(train=False), "turn with train=False is not learned"),
        (answer(loss="false"), "turn with loss=false is not learned"),
        (
            {"prompt": "Weather?", "chosen": answer(tool_calls=CALL)["messages"][1:], "rejected": "b"},
            "turn with a tool call (tool_calls) is not learned",
        ),
    ],
)
def test_a_turn_that_must_not_be_learned_is_not(row: dict[str, Any], why: str, write) -> None:
    """A call of a tool was learned as the words before it, and weights were not looked at."""
    reader, (example,) = reader_of(write("a.jsonl", [row]))
    assert (example.prompt, example.chosen, example.rejected) == ((USER,), None, None)
    assert reader.remarks[why] == 1


@pytest.mark.parametrize("fields", [{"weight": 1}, {"train": True}, {"weight": None, "tool_calls": []}])
def test_a_turn_that_may_be_learned_is(fields: dict[str, Any], write) -> None:
    reader, (example,) = reader_of(write("a.jsonl", [answer(**fields)]))
    assert example.chosen == "Let me look."
    assert not reader.remarks


def test_a_call_without_its_result_and_a_result_without_a_call_are_refused(write) -> None:
    call = answer(None, tool_calls=CALL)["messages"]
    result, final = {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sun."}
    path = write("a.jsonl", [{"messages": [*call, final]}, {"messages": [USER, final, result, final]}])
    with pytest.raises(DataError) as caught:
        reader_of(path)
    assert (
        "line 1: roles are out of order (user, assistant): a tool's call without its result"
        in (caught.value.problems[0])
    )
    assert (
        "line 2: roles are out of order (user, assistant, tool): a tool's result without a call"
        in (caught.value.problems[1])
    )


def test_a_plan_without_rows_to_learn_says_why(write, settings) -> None:
    path = write("a.jsonl", [answer(tool_calls=CALL)] * 3)
    (found,) = problems(settings(path), stage=1)
    assert found.startswith(
        "stage 1 needs rows with prompt and chosen; the sources have none (3 × turn with a tool call"
    )
    bad = write("b.jsonl", [{"prompt": "q", "completion": "a", "label": False}])
    assert "(1 × answer labelled false" in problems(settings(bad), stage=1)[0]
    assert "(1 × answer labelled false" in problems(settings(bad), stage=2)[0]
    assert problems(settings(bad), stage=3) == []


@pytest.mark.parametrize("empty", [None, float("nan"), ""])
def test_an_answer_without_a_score_is_left_out(empty: Any, write) -> None:
    """It counted as 0, which is the best score among negative ones."""
    rows = [{"prompt": "q", "answers": ["unrated", "bad", "worse"], "scores": [empty, -1, -2]}]
    reader, examples = reader_of(write("a.jsonl", rows))
    assert [(e.chosen, e.rejected) for e in examples] == [("bad", "worse")]
    assert reader.remarks == {"answer without a score is left out": 1}


def test_answers_without_scores_are_not_taken_as_ranked_where_others_have_scores(write) -> None:
    rows = [{"prompt": "q", "answers": ["a", "b"], "scores": [1, 2]}, {"prompt": "r", "answers": ["a", "b"]}]
    reader, examples = reader_of(write("a.jsonl", rows))
    assert [(e.chosen, e.rejected) for e in examples] == [("b", "a")]
    assert (reader.remarks, reader.silent) == ({"answer without a score is left out": 2}, 1)


def test_each_file_of_a_folder_is_recognised_by_its_own_rows(tmp_path: Path, write) -> None:
    write("all/a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 2)
    write("all/b.jsonl", [{"prompt": "p", "completion": "c", "system": "S"}])
    reader, examples = reader_of(str(tmp_path / "all"))
    assert [(len(e.prompt), e.chosen, e.rejected) for e in examples] == [(1, "a", "b"), (1, "a", "b"), (2, "c", None)]
    assert reader.says == (
        "preference pairs: prompt, chosen, rejected; prompts with a response: prompt, system, chosen from completion"
    )
    write("all/c.jsonl", [{"id": 1}])
    with pytest.raises(DataError, match=r"c\.jsonl, line 1: has the columns 'id', which fit no known shape"):
        reader_of(str(tmp_path / "all"))


def test_rows_before_the_first_that_can_be_read_are_counted(write) -> None:
    path = write("a.jsonl", [*["{"] * 3, {"prompt": "q", "chosen": "a", "rejected": "b"}])
    reader, examples = reader_of(path, skip_bad_rows=True)
    assert (len(examples), reader.bad.total(), reader.read) == (1, 3, 4)
    with pytest.raises(DataError, match="line 1: is not valid JSON"):
        reader_of(write("b.jsonl", ["{"] * 3))


DOUBLED = "response that begins with its prompt, so that the prompt is there twice; remove it from the responses"


def test_responses_that_begin_with_the_prompt_are_remarked_upon(write) -> None:
    """Such files train a model to repeat each question before it answers."""
    rows = [
        {"prompt": f"What is {i}?", "chosen": f"What is {i}? It is.", "rejected": f" What is {i}? No."}
        for i in range(30)
    ]
    good = [{"prompt": f"What is {i}?", "chosen": "It is.", "rejected": f"What is {i}? No."} for i in range(30)]
    assert reader_of(write("a.jsonl", rows))[0].remarks == {DOUBLED: 30}
    assert reader_of(write("b.jsonl", good))[0].remarks == {}
    assert reader_of(write("c.jsonl", rows[:20] + good))[0].remarks == {}
    assert reader_of(write("d.jsonl", [r | {"chosen": r["prompt"], "rejected": "no"} for r in rows]))[0].remarks == {}


def test_a_transcript_that_repeats_its_prompt_is_read_from_its_last_turn(write) -> None:
    asked = "\n\nHuman: q\n\nAssistant:"
    reader, (example,) = reader_of(write("a.jsonl", [{"prompt": asked, "chosen": f"{asked} a", "rejected": " b"}]))
    assert (example.chosen, example.rejected) == ("a", "b")
    assert not reader.remarks


def test_check_show_and_the_run_say_the_same(write, run, settings, template, capfd) -> None:
    rows = [{"prompt": f"q {i}", "chosen": f"a {i}", "rejected": "b", "tools": [{}]} for i in range(60)]
    path = write("a.jsonl", rows)
    said = f"{path}: 60 × column 'tools' is not used"
    assert f"warning  {said}" in run(check, "--data-path", path)[1]
    show.main.main(["--data-path", path, "--model", str(Path(path).parent / "tokenizer")], standalone_mode=False)
    assert said in "".join(capfd.readouterr())
    report = prompts(settings(path), template).report
    capfd.readouterr()
    announce(report)
    assert said in "".join(capfd.readouterr())


def test_an_adapter_of_the_users_own_may_make_remarks(tmp_path: Path, write) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from data.example import Example, Remark, ask\n"
        "def f(row):\n    yield Example(ask(row['q']))\n    yield Remark('no votes')\n"
    )
    reader, _ = reader_of(write("a.jsonl", [{"q": "1"}, {"q": "2"}]), data_adapter=f"{code}:f")
    assert reader.remarks == {"no votes": 2}
