"""The viewer of rollouts: what is there, in which order, in which colour; and what is not there, said in one line."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from step3_ppo import show
from step3_ppo.rollout_files import read_rollouts
from step3_ppo.rollout_view import Iteration, ordered, pairs, response_text, scale_of, summary


def row(
    prompt: str, tokens: list[str], score: float | None, kl: list[float], *, stopped: bool = True
) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "response": "".join(tokens[:-1] if stopped else tokens),
        "stopped": stopped,
        "score": score,
        "final_score": None if score is None else score - (0 if stopped else 1),
        "tokens": tokens,
        "kl": kl,
        "value": [0.5] * len(kl),
        "advantage": [-0.25] * len(kl),
    }


FIRST = [
    row("What is 2+2?", [" four", ".", "</s>"], 1.0, [0.1, -0.2, 0.0]),
    row("Say [bold]hello[/bold]", [" [red]", "oh\x1b[31m", "\n"], -0.5, [1.5, 0.5, 0.25], stopped=False),
    row("Where is Rome?", [" Italy", "</s>"], 3.0, [0.0, 0.0]),
]
SECOND = [
    row("Where is Rome?", [" In", " Italy", "</s>"], 4.0, [0.5, 0.5, 0.0]),
    row("What is 3+3?", [" six", "</s>"], 2.0, [0.0, 1.0]),
]
Show = Callable[..., Result]


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage folder with rollouts of the iterations 1, 10 and 12."""
    folder = tmp_path / "run" / "step3_ppo" / "rollouts"
    folder.mkdir(parents=True)
    for number, rows in ((1, FIRST), (10, FIRST), (12, SECOND)):
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)
        (folder / f"iteration-{number:06}.jsonl").write_text(lines)
    return folder.parent


@pytest.fixture
def view(stage: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """`view("--sort", "score")` shows the run through a pipe."""
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *words, run=stage: CliRunner().invoke(show.main, [str(run), *map(str, words)])


def prompts(output: str) -> list[str]:
    return [line.removeprefix("user: ") for line in output.splitlines() if line.startswith("user: ")]


def test_the_last_iteration_is_shown_by_itself(view: Show) -> None:
    done = view()
    assert done.exit_code == 0, done.stderr
    assert prompts(done.stdout) == ["Where is Rome?", "What is 3+3?"]
    assert "iteration 12: 2 responses; mean score 3" in done.stdout
    assert "row 1 · score 4 (4 as PPO saw it) · KL 1 nats · 3 tokens, ended" in done.stdout


@pytest.mark.parametrize("run", ["run", "run/step3_ppo", "run/step3_ppo/rollouts"])
def test_a_run_is_found_from_each_of_its_folders(view: Show, run: str, tmp_path: Path) -> None:
    assert prompts(view("--rows", 1, run=tmp_path / run).stdout) == ["Where is Rome?"]


def test_one_file_is_a_run_too(view: Show, stage: Path) -> None:
    assert len(prompts(view(run=stage / "rollouts/iteration-000001.jsonl").stdout)) == 3


@pytest.mark.parametrize(
    "order, expected",
    [("row", [1, 2, 3]), ("score", [3, 1, 2]), ("kl", [2, 3, 1]), ("length", [1, 2, 3])],
)
def test_rows_are_sorted_most_first_and_turned_round(order: str, expected: list[int]) -> None:
    """KL of a response is the sum over its tokens: −0.1, 2.25 and 0."""
    rows = [{**r, "row": place} for place, r in enumerate(FIRST, start=1)]
    assert [r["row"] for r in ordered(rows, order)] == expected
    backwards = [r["row"] for r in ordered(rows, order, reverse=True)]
    assert backwards == expected[::-1]


def test_a_score_that_is_no_number_comes_last(view: Show, stage: Path) -> None:
    broken = [row("Broken?", [" x", "</s>"], None, [0.0, 0.0]), *FIRST]
    (stage / "rollouts/iteration-000012.jsonl").write_text("".join(json.dumps(r) + "\n" for r in broken))
    done = view("--sort", "score")
    assert prompts(done.stdout)[-1] == "Broken?"
    assert "score not finite" in done.stdout


def test_text_is_not_markup_and_moves_no_cursor(view: Show) -> None:
    """The model wrote rich's markup and a terminal's escape sequence; both are shown as they are."""
    shown = view("--iteration", 1).stdout
    assert "user: Say [bold]hello[/bold]" in shown
    assert "\n[red]oh[31m↵" in shown
    assert "\x1b" not in shown


def test_a_response_shows_how_it_ended(view: Show) -> None:
    shown = view("--iteration", 1).stdout
    assert shown.count("✂ cut") == 1
    assert shown.count("cut at the limit") == 1
    assert shown.count("</s> ") == 2


def test_tokens_are_shaded_by_size_and_sign() -> None:
    """Red is above 0, blue below, nothing near 0; a value at the scale has the whole colour, half of it half."""
    text = response_text(row("", ["a", "b", "c", "d"], 0.0, [2.0, 1.0, -2.0, 0.01], stopped=False), "kl", 2.0)
    found = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert found["a"] == "white on rgb(190,40,40)"
    assert found["b"] == "white on rgb(95,20,20)"
    assert found["c"] == "white on rgb(40,80,190)"
    assert "d" not in found


def test_one_outlier_does_not_pale_the_rest() -> None:
    rows = [row("", ["x"] * 100, 0.0, [0.1] * 99 + [50.0])]
    assert scale_of(rows, "kl") == pytest.approx(0.1)
    assert scale_of([row("", ["x"], 0.0, [0.0])], "kl") > 0


def test_what_the_colours_say_is_also_said_in_words(view: Show) -> None:
    """Through a pipe there are no colours."""
    assert "most KL, nats: ' [red]' +1.5, 'oh[31m' +0.5, '\\n' +0.25" in view("--iteration", 1).stdout
    assert "most advantage: " in view("--colour", "advantage").stdout


def test_two_iterations_side_by_side_meet_at_the_prompt(view: Show) -> None:
    shown = view("--iteration", 1, "--compare", 12).stdout
    assert prompts(shown) == ["Where is Rome?"]
    assert "the same prompt" in shown
    both = next(line for line in shown.splitlines() if "Italy" in line)
    assert both.count("Italy") == 2  # the responses stand in one line
    means = next(line for line in shown.splitlines() if "mean score" in line)
    assert [cell.strip() for cell in means.split("│")[2:5]] == ["1.167", "3", "1.833"]


def test_a_narrow_screen_has_them_one_under_the_other(view: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = importlib.import_module("rlhf.console.screen")  # the package has a function of that name
    monkeypatch.setattr(screen, "_console", screen._console.__wrapped__)  # its width is kept otherwise
    monkeypatch.setenv("COLUMNS", "60")
    shown = view("--iteration", 1, "--compare", 12).stdout
    assert "iteration 1: row 3" in shown and "iteration 12: row 1" in shown


def test_without_a_common_prompt_equal_ranks_are_compared() -> None:
    left = Iteration(1, [{**r, "row": n} for n, r in enumerate(FIRST[:2], start=1)])
    right = Iteration(2, [{**r, "row": n} for n, r in enumerate(SECOND, start=1)])
    assert [(a["row"], b["row"]) for a, b in pairs(left, right, "score")] == [(1, 1), (2, 2)]


def test_the_summary_is_of_the_rows_that_have_a_score() -> None:
    found = summary([*FIRST, row("", ["x"], None, [0.0], stopped=False)])
    assert found["mean score"] == pytest.approx((1.0 - 0.5 + 3.0) / 3)
    assert found["nats of KL per response"] == pytest.approx((-0.1 + 2.25) / 4)
    assert found["share that ended"] == 0.5


def test_the_list_names_what_is_there(view: Show) -> None:
    shown = view("--list").stdout
    numbers = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert numbers == ["1", "10", "12"]


# --- what is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted, near", [(7, "the nearest are 1 and 10"), (99, "the nearest is 12")])
@pytest.mark.parametrize("flag", ["--iteration", "--compare"])
def test_an_iteration_that_was_not_kept_names_the_nearest(view: Show, flag: str, wanted: int, near: str) -> None:
    done = view(flag, wanted)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: there are no rollouts of iteration {wanted}; {near}; --list shows all 3")
    assert done.stderr.count("\n") == 1


def test_a_folder_without_rollouts_says_where_they_would_be(view: Show, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = view(run=tmp_path / "empty")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'empty'} has no rollouts: no iteration-000001.jsonl")
    gone = view(run=tmp_path / "gone")
    assert (gone.exit_code, gone.stderr) == (
        2,
        f"error: {tmp_path / 'gone'} does not exist; give a run's output folder\n",
    )


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"prompt": []}\n', "line 1 is not a row of a rollout: it lacks advantage, final_score, kl"),
        (json.dumps(FIRST[0]) + "\n{", "line 2 is not a row of a rollout"),
        ("[]\n", "line 1 is not a row of a rollout"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(view: Show, stage: Path, content: str, said: str) -> None:
    (stage / "rollouts/iteration-000012.jsonl").write_text(content)
    done = view()
    assert done.exit_code == 2
    assert said in done.stderr and "iteration-000012.jsonl" in done.stderr


def test_another_file_is_no_run(view: Show, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    done = view(run=tmp_path / "metrics.jsonl")
    assert done.exit_code == 2
    assert "is not a file of rollouts" in done.stderr


def test_a_line_separator_in_a_response_does_not_cut_its_row(tmp_path: Path) -> None:
    """JSON leaves U+2028 as it is, and str.splitlines() cuts there: half a row was read and the file called damaged."""
    path = tmp_path / "iteration-000001.jsonl"
    lines = [row("?", ["a\u2028b\x85", "</s>"], 1.0, [0.0, 0.0]), FIRST[0]]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert [r["tokens"][0] for r in read_rollouts(path)] == ["a\u2028b\x85", " four"]


# --- on a terminal ---------------------------------------------------------------------------------------------------


def test_keys_turn_the_pages(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, back beyond the first, sorted by score, the iteration before, the colour; then out."""
    seen: list[tuple[int, str, str, int]] = []
    keys = iter([" ", "b", "b", "s", "-", "c", "q"])
    monkeypatch.setattr(show.click, "getchar", lambda: next(keys))
    monkeypatch.setattr(show, "show_head", lambda iterations, view, scale: None)
    monkeypatch.setattr(
        show,
        "show_row",
        lambda row, view, scale: seen.append((view.iteration, view.order, view.shade, row["row"])),
    )
    files = show.rollout_files(stage)
    show.turn_pages(files, show.View(12, None, "row", False, "kl"), limit=None)
    assert seen == [
        (12, "row", "kl", 1),
        (12, "row", "kl", 2),
        (12, "row", "kl", 1),
        (12, "row", "kl", 1),
        (12, "score", "kl", 1),
        (10, "score", "kl", 3),
        (10, "score", "advantage", 3),
    ]


@pytest.mark.process
def test_nothing_heavy_is_imported(stage: Path) -> None:
    program = (
        "import sys; from step3_ppo.show import main\n"
        f"try: main([{str(stage)!r}])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
