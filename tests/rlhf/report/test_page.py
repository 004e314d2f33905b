"""The report: hostile text, and runs that are half there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlhf.errors import DataError
from rlhf.report.page import flat, main, render, shown_figure, write_report

HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


def a_run(folder: Path, text: str = "plain") -> Path:
    """A run whose stages 1 and 2 are there, with `text` wherever text may come from outside."""
    for name, rows in (
        ("step1_sft", [{"step": 0, "sft/perplexity": 9.5}, {"step": 1, "sft/loss": 2.25, f"sft/{text}": 1.0}]),
        ("step3_ppo", [{"step": 1, "ppo/scores_mean": 0.5, "ppo/kl": None}]),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / name / "config.yaml").write_text(yaml.safe_dump({"data_path": [text], "lr": 1e-5, "ema": True}))
    metrics = {"sft/perplexity_before": 9.5, "sft/perplexity": 3.25}
    done = {"stage": "step1_sft", "seconds": 61.0, "metrics": metrics, "models": {"sft": text}}
    (folder / "step1_sft" / "done.json").write_text(json.dumps(done))
    sections = {
        "pipeline": {"actor_model": text},
        "run": {
            "stages": ["step1_sft", "step2_reward", "step3_ppo"],
            "ranks": text,
            "data": {text: {"fingerprint": text}},
        },
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(sections))
    figures = {"mean": 0.5, "stderr": 0.1}
    model = {"label": text, "model": text, "length": figures, "end_rate": 1.0, "seconds": 1.0}
    model["score"] = {**figures, "gain": figures, "win_rate": figures, "parts": {f"polite {text}": figures}}
    said = {text: {"text": text, "length": 3, "ended": False, "score": 0.5, "parts": {f"polite {text}": 0.25}}}
    evaluation = {
        "prompts": {"file": text, "count": 7},
        "settings": {},
        "models": [model],
        "samples": [{"row": 1, "prompt": text, "responses": said}],
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


class Page(HTMLParser):
    """The tags of a page, its text, and whether they close in order."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_page_shows_the_run(tmp_path: Path):
    page = Page(render(a_run(tmp_path / "run")))
    for part in (
        "SFT perplexity3.25from 9.5",
        "not finished",
        "not run",
        "1:01",
        "Evaluation on 7 prompts",
        "0.500 ± 0.100",
        "winspolite plainlength",  # the part of a score, in the table
        "Polite plain",  # its chart
        "polite plain 0.25",  # and beside the sample
    ):
        assert part in re.sub(r"\s*\n\s*", "", page.text), part
    titles = re.findall("Loss|Held-out perplexity|KL to the reference|Accuracy", page.text)
    assert titles == ["Loss", "Held-out perplexity", "KL to the reference"]


def test_text_from_outside_stays_text(tmp_path: Path):
    """Prompts, responses, labels, metric names, settings and paths may hold anything; none of it becomes markup."""
    run = a_run(tmp_path / "<i>run", HOSTILE)
    (run / "step2_reward").mkdir()
    (run / "step2_reward" / "metrics.jsonl").write_text(f"{HOSTILE}\n{HOSTILE}\n")
    page = Page(render(run))
    assert not {tag for tag, _ in page.tags} & {"script", "i", "img", "link", "iframe", "a"}
    assert page.text.count(HOSTILE) >= 8
    assert "<i>run" in page.text
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on") or a in ("src", "href")]


def test_the_page_needs_nothing_from_outside(tmp_path: Path):
    text = render(a_run(tmp_path / "run"))
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_what_cannot_be_read_is_named_and_left_out(tmp_path: Path):
    """A report is written at the end of a long run: one broken file must not cost it."""
    run = a_run(tmp_path / "run")
    (run / "evaluation.json").write_text("{")
    (run / "step1_sft" / "metrics.jsonl").write_text('nonsense\n{"step": 1}\n')
    (run / "step3_ppo" / "config.yaml").write_text("- a\n- b\n")
    page = Page(render(run))
    for name in ("evaluation.json", "step1_sft/metrics.jsonl", "step3_ppo/config.yaml"):
        assert f"cannot be read: {name}" in page.text
    assert "KL to the reference" in page.text


def test_half_a_character_in_a_response_can_be_written(tmp_path: Path):
    """JSON may hold half of a pair of surrogates, which UTF-8 cannot write."""
    run = a_run(tmp_path / "run", "x\ud83dx")
    assert "x?x" in write_report(run).read_text(encoding="utf-8")


def test_the_command_writes_the_page(tmp_path: Path):
    run = a_run(tmp_path / "run")
    result = CliRunner().invoke(main, [str(run)], standalone_mode=False, catch_exceptions=False)
    assert result.return_value == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert "report.html" in result.stdout


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"is not the folder of a run: it has no pipeline\.yaml"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        write_report(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_settings_as_rows():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": 3}]}) == [("a.b", 1), ("d", [1, 2]), ("e.1.f", 3)]
    assert [shown_figure(v) for v in (None, [], True, 1e-5, ["a", 2], "x")] == ["–", "–", "yes", "1e-05", "a, 2", "x"]
