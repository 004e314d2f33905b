"""`python -m data.check`, as a user runs it."""

from __future__ import annotations

from typing import Any

import pytest

from data import check, show
from data.stage_data import prompts
from rlhf.errors import DataError


def test_check_finds_what_is_wrong_and_says_where(run, write, pairs) -> None:
    rows: list[Any] = [
        *pairs(200),
        "{broken",
        {"prompt": "q", "chosen": "a"},
        {"prompt": "e", "chosen": " ", "rejected": "b"},
        {"prompt": "s", "chosen": "same", "rejected": "same "},
        {"prompt": "q 1?", "chosen": "yes 1", "rejected": "no 1"},  # line 2 once more
        {"prompt": "q 5?", "chosen": "no 5", "rejected": "yes 5"},  # line 6 the other way round
        {"prompt": "m", "chosen": "x" * 300, "rejected": "b"},
    ]
    path = write("a.jsonl", rows)
    code, text = run(check, "--data-path", path, "--model", "MODEL")
    assert code == 2
    lines = text.splitlines()

    def place_after(start: str) -> str:
        return lines[next(i for i, line in enumerate(lines) if start in line) + 1].strip()

    assert place_after("  error  ").startswith(f"{path}, line 20")
    assert "1 × is not valid JSON: expecting property name enclosed in double quotes at column 2" in text
    assert "1 × has no column 'rejected'" in text
    assert place_after("1 chosen responses are empty") == f"{path}, line 203"
    assert place_after("in 1 pairs chosen and rejected are the same") == f"{path}, line 204"
    assert place_after("1 rows repeat another row") == f"{path}, line 2"
    assert place_after("2 pairs contradict another pair") == f"{path}, line 6"
    assert place_after("1 prompts have several different chosen responses") == f"{path}, line 6"
    assert "chosen is the longer response in 99% of the pairs" in text
    assert "1 of 205 chosen responses (0.5%) are longer than 256 tokens and are left out" in text
    assert "tokens of chosen (205 measured; " in text
    assert "257-511    █ 1  over the limit" in text
    # "q 1?", "q 2?", … differ in digits alone
    assert "prompts that are trained on are like one of another stage apart from case, digits and punctuation" in text
    assert lines[-1].startswith("2 errors, 3 warnings, ")


def test_check_is_content_with_good_data(run, write) -> None:
    import random

    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghij", k=9)) for _ in range(120)]
    rows = [{"prompt": w, "chosen": w[:4], "rejected": w[4:8]} for w in words]
    code, text = run(check, "--data-path", write("a.jsonl", rows))
    assert code == 0
    assert text.splitlines()[-2:] == [
        "lengths in tokens are measured when --model is given",
        "0 errors, 0 warnings, 0 notes",
    ]


def test_check_warns_of_an_instruction_that_is_cut_off(run, write) -> None:
    rows = [{"prompt": f"Summarize the following text.\n{'y' * i}", "chosen": "a", "rejected": "b"} for i in range(80)]
    _, text = run(check, "--data-path", write("a.jsonl", rows), "--model", "MODEL", "--max-prompt-length", "100")
    assert "all prompts begin with “Summarize the following text.\nyy" not in text
    assert "all prompts begin with “Summarize the following text.”, which keep_end removes" in text


def test_two_sources_in_common_are_counted(run, write, pairs) -> None:
    _, text = run(check, "--data-path", write("a.jsonl", pairs(60)), "--data-path", write("b.jsonl", pairs(20)))
    assert "20 prompts are in more than one source" in text


@pytest.mark.parametrize("module", [show, check])
def test_a_missing_source_is_one_line(module: Any, run) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl does not exist"):
        run(module, "--data-path", "absent.jsonl", "--model", "MODEL")


def test_check_and_run_say_the_same_of_what_is_cut_and_left_out(run, write, settings, template) -> None:
    """`data.check` compared lengths with the limit and said "are cut" of rows that the run left out."""
    rows = [{"prompt": f"{'好' if i % 2 else 'x' * 9} {i % 2} {i}" if i % 4 else f"好好{'好' * i}"} for i in range(40)]
    pairs = [{"prompt": f"{i} q", "chosen": "</s> and more", "rejected": "no"} for i in range(5)]
    limit = len(template.prompt_ids([{"role": "user", "content": ""}])) + 2  # less than one of these characters
    paths = [write("a.jsonl", rows), write("b.jsonl", pairs)]
    flags = [word for path in paths for word in ("--data-path", path)]
    _, text = run(check, *flags, "--model", "MODEL", "--max-prompt-length", str(limit))
    assert f"35 of 45 prompts (77.8%) are longer than {limit} tokens and are cut (keep_end)" in text
    assert f"10 of 45 prompts (22.2%) are longer than {limit} tokens and are left out: no character of their" in text
    assert "5 of 5 chosen responses (100.0%) spell the end token inside and are left out" in text
    report = prompts(settings(*paths, max_prompt_length=limit, data_split="0,0,1", eval_ratio=0.5), template).report
    sums = [{**report[part]["cut"], **report[part]["dropped"]} for part in ("train", "held_out")]
    assert sum(s.get("prompt cut to max_prompt_length", 0) for s in sums) == 35
    assert sum(s.get("prompt longer than max_prompt_length", 0) for s in sums) == 10
