"""Answers with a label: good ones are demonstrations, bad ones are never learned."""

from __future__ import annotations

from typing import Any

import pytest

from data.example import Example, RowError
from data.labels import BAD_ALONE, is_good, paired
from data.recognise import recognise
from data.stage_data import demonstrations, preferences, prompts

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("label", "good"), [(True, True), (False, False), (1, True), (0.0, False), ("True", True), (" false", False)]
)
def test_a_label_is_true_or_false(label: Any, good: bool) -> None:
    assert is_good(label) is good


@pytest.mark.parametrize(
    ("label", "message"),
    [(2, "label is 2, neither true nor false"), ("good", "label is 'good'"), (None, r"empty \(null\)"), ([], "a list")],
)
def test_other_labels_are_errors(label: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        is_good(label)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": False},
        {"messages": TALK, "kto_tag": False},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": "false"},
    ],
)
def test_a_bad_answer_is_no_demonstration(row: dict[str, Any]) -> None:
    """Answers with label false used to be learned as demonstrations."""
    (example,) = recognise([row], {}).adapt(row)
    assert isinstance(example, Example)
    assert (example.prompt[0]["content"], example.chosen, example.rejected) == ("q", None, "a")


def test_good_and_bad_answers_to_a_prompt_that_stand_together_are_pairs() -> None:
    def row(name: str, **values: Any) -> tuple[str, Example]:
        prompt: Any = ({"role": "user", "content": values.pop("prompt")},)
        return name, Example(prompt, **values)

    rows = [
        row("1", prompt="p", rejected="bad"),
        row("2", prompt="p", chosen="good"),
        row("3", prompt="p", chosen="fine"),
        row("4", prompt="r", rejected="alone"),
        row("5", prompt="s", chosen="alone"),
        row("6", prompt="p", chosen="c", rejected="d"),
        row("7", prompt="p"),
    ]
    found = [(where, e.chosen, e.rejected) for where, e in paired(rows)]
    assert found == [
        ("2", "good", "bad"),
        ("3", "fine", "bad"),
        ("4", None, "alone"),
        ("5", "alone", None),
        ("6", "c", "d"),
        ("7", None, None),
    ]


def test_no_stage_learns_a_bad_answer(write, settings, template) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"bad {i}", "label": False} for i in range(60)]
    rows += [
        {"prompt": f"p {i}", "completion": f"{w} {i}", "label": w == "fig"} for i in range(60) for w in ("fig", "bad")
    ]
    path = write("a.jsonl", rows)

    def texts(data: Any, name: str) -> list[str]:
        return [template.tokenizer.decode(row[name]) for row in [*data.train, *data.held_out]]

    learned = demonstrations(settings(path), template)
    assert all("bad" not in text for text in texts(learned, "input_ids"))
    assert len(learned.train) > 10
    pairs = preferences(settings(path), template)
    assert all(" fig" in text for text in texts(pairs, "chosen_ids"))
    assert all(" bad" in text for text in texts(pairs, "rejected_ids"))
    assert any("q " in text for text in texts(prompts(settings(path), template), "prompt_ids"))
    assert learned.report["sources"][0]["remarks"] == {BAD_ALONE: 60}


def test_answers_with_scores_are_pairs_and_only_the_best_is_learned(write, settings, template) -> None:
    """A score was dropped, so that the worst answer to a prompt was learned like the best."""
    rows = [
        {"prompt": f"p {i}", "response": f"{text} {i}", "score": score}
        for i in range(40)
        for text, score in (("bad", 1), ("fig", 3), ("plum", 2), ("none", None))
    ]
    path = write("a.jsonl", rows)
    learned, pairs = demonstrations(settings(path), template), preferences(settings(path), template)
    decode = template.tokenizer.decode
    assert all(" fig" in decode(row["input_ids"]) for row in [*learned.train, *learned.held_out])
    found = {(decode(row["chosen_ids"]).split()[0], decode(row["rejected_ids"]).split()[0]) for row in pairs.train}
    assert found == {("fig", "bad"), ("fig", "plum"), ("plum", "bad")}
    alone = "answer with a score, or without one, that no answer to the same prompt beside it is compared with"
    assert [n for text, n in pairs.report["sources"][0]["remarks"].items() if text.startswith(alone)] == [40]


def test_a_column_that_is_left_out_judges_nothing() -> None:
    row = {"prompt": "q", "response": "a", "score": 1, "label": False}
    shape = recognise([row], {"score": "", "label": ""})
    (example,) = [item for item in shape.adapt(row) if isinstance(item, Example)]
    assert (type(example), example.chosen) == (Example, "a")
