"""What the stages of a run read, by its method: `data.check` and `data.show` count what the run counts."""

from __future__ import annotations

from typing import Any

import pytest

from data import check, preflight, show
from data.config import DataSettings, PreferenceSettings
from data.stage_data import preferences, unpaired
from rlhf.errors import ConfigError, DataError
from rlhf.template import Template

# Shapes of files that KTO reads, each with good and bad responses that are left out.
FILES: dict[str, list[dict[str, Any]]] = {
    "labels": [
        *({"prompt": f"q{i}", "completion": f"a{i}", "label": i % 3 > 0} for i in range(60)),
        {"prompt": "nothing said", "completion": " ", "label": True},
        {"prompt": "spells its end", "completion": "a</s>b", "label": False},
    ],
    "pairs": [
        *({"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(30)),
        *({"prompt": f"same {i}", "chosen": "x", "rejected": "x "} for i in range(8)),
        *({"prompt": f"long {i}", "chosen": "y" * 60, "rejected": "z"} for i in range(8)),
    ],
    "conversations": [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"a{i}" if i % 5 else "w" * 50},
            ],
            "label": i % 2,
        }
        for i in range(60)
    ],
    "ranked": [{"prompt": f"q{i}", "answers": ["A", "B", "C", "D" * (i + 1)]} for i in range(50)],
    "scored": [{"prompt": f"q{i // 2}", "response": f"a{i}", "score": i % 7} for i in range(60)],
    "lists of rejected": [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": ["b", "c" * i]} for i in range(60)],
}
LIMIT = 40


def lines_of(text: str) -> list[str]:
    """What is said of good and bad responses and of what is left out, without what is before it on the line."""
    starts = ("train responses: ", "held-out responses: ", "train rows left out: ", "held-out rows left out: ")
    return sorted(line[at:] for line in text.splitlines() for start in starts if (at := line.find(start)) >= 0)


def last_cells(text: str) -> list[str]:
    """What the table of rows says of stage 2: to train on, and held out."""
    *_, row = (line for line in text.splitlines() if " all " in line)
    return row.replace("│", " ").split()[-2:]


@pytest.mark.parametrize("name", FILES)
def test_check_show_and_the_run_count_the_same_responses(
    run, write, settings, template: Template, capfd, name: str
) -> None:
    """`data.show` showed the pairs of stage 2 for a run with KTO, and said that the bad answers were not learned."""
    path = write("a.jsonl", FILES[name])
    options = ("--data-path", path, "--model", "MODEL", "--method", "kto", "--max-response-length", str(LIMIT))
    plain = settings(path, max_response_length=LIMIT)
    of_run = PreferenceSettings(**plain.model_dump())
    assert preflight.problems(of_run, stage=2, kind="unpaired") == []
    report = unpaired(of_run, template).report
    said = capfd.readouterr().out
    assert report["train"]["rows"] > report["train"]["desirable"] > 0
    wanted = lines_of(said)
    assert any("left out" in line for line in wanted) or name == "scored"
    for module in (check, show):
        code, text = run(module, *options)
        assert code == 0
        assert lines_of(text) == wanted, module.__name__
        of_stage = report["sources"][0]
        assert [f"{of_stage['train']}", f"{of_stage['held_out']}"] == last_cells(text), module.__name__
        assert "is not learned; its prompt is kept" not in text.replace("answer with a score", "")


def test_good_and_bad_responses_are_shown_as_such(run, write) -> None:
    path = write("a.jsonl", FILES["labels"])
    code, text = run(show, "--data-path", path, "--model", "MODEL", "--method", "kto", "--stage", "2", "--rows", "40")
    assert code == 0
    heads = [line.split(" ─")[0].split(", line ")[1] for line in text.splitlines() if line.startswith("stage 2 · ")]
    good = {number for number, row in enumerate(FILES["labels"], 1) if row["label"]}
    for head in heads[:40]:
        number, kind = head.split(" · ")[:2]
        assert kind == ("good" if int(number) in good else "bad")
    assert "     good   a1\n      end  </s>" in text or "     good   a2\n      end  </s>" in text
    assert "      bad   a" in text
    assert "  chosen  " not in text


def test_the_pairs_of_stage_3_belong_to_stage_2_without_it(run, write, pairs, settings, template: Template) -> None:
    path = write("a.jsonl", pairs(80))
    report = preferences(PreferenceSettings(**settings(path).model_dump()), template).report
    for module in (check, show):
        text = run(module, "--data-path", path, "--model", "MODEL", "--method", "dpo")[1]
        assert last_cells(text) == [str(report["sources"][0][part]) for part in ("train", "held_out")]
    with pytest.raises(ConfigError, match="--stage 3: a run with --method dpo has no stage 3"):
        run(show, "--data-path", path, "--model", "MODEL", "--method", "dpo", "--stage", "3")


@pytest.mark.parametrize("label, kind", [(True, "good"), (False, "bad")])
def test_one_kind_alone_is_refused_as_the_plan_refuses_it(run, write, label: bool, kind: str) -> None:
    path = write("a.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}", "label": label} for i in range(30)])
    [line] = preflight.problems(PreferenceSettings(data_path=[path]), stage=2, kind="unpaired")
    assert f"needs good and bad responses, by pairs or by a label; all that the sources have are {kind}" in line
    for module in (check, show):
        with pytest.raises(DataError) as error:
            run(module, "--data-path", path, "--model", "MODEL", "--method", "kto")
        assert error.value.problems == [line]


def test_a_kind_of_which_nothing_is_left_is_an_error_of_check(run, write) -> None:
    """All good answers are empty: only tokenising shows it, and the run stops then."""
    rows = [{"prompt": f"q{i}", "completion": " " if i % 2 else f"a{i}", "label": i % 2} for i in range(30)]
    code, text = run(check, "--data-path", write("a.jsonl", rows), "--model", "MODEL", "--method", "kto")
    assert code == 2
    assert "  error  stage 2: all train responses are bad: this stage needs both kinds" in text


def test_demonstrations_that_are_not_learned_are_no_good_responses(run, write) -> None:
    """The plan took them for good ones with learn_demonstrations off, so the run was refused when stage 2 began."""
    shown = write("shown.jsonl", [{"prompt": f"d{i}", "response": f"x{i}"} for i in range(20)])
    bad = write("bad.jsonl", [{"prompt": f"j{i}", "response": f"y{i}", "label": 0} for i in range(20)])
    settings = DataSettings(data_path=[shown, bad])
    assert preflight.problems(settings, stage=2, kind="unpaired") == []
    [line] = preflight.problems(settings, stage=2, kind="unpaired", demonstrations=False)
    assert "all that the sources have are bad" in line
    options = ("--data-path", shown, "--data-path", bad, "--method", "kto")
    code, text = run(check, *options)
    assert code == 0 and "train responses: " in text
    with pytest.raises(DataError, match="all that the sources have are bad"):
        run(check, *options, "--no-learn-demonstrations")
