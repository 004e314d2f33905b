"""`python -m data.show`, as a user runs it."""

from __future__ import annotations

from data import check, show
from data.stage_data import demonstrations


def test_show_tells_prompt_counted_tokens_end_padding_and_cuts_apart(run, write, pairs) -> None:
    rows = pairs(40)
    rows[:] = [r | {"prompt": f"{'x' * (30 if i % 2 else 3)} {r['prompt']}", "chosen": "yes " * (i % 3 + 1)} for i, r in
               enumerate(rows)]  # fmt: skip
    path = write("a.jsonl", rows)
    code, text = run(
        show, "--data-path", path, "--model", "MODEL", "--stage", "2", "--rows", "40", "--max-prompt-length", "40",
        "--max-response-length", "12",
    )  # fmt: skip
    assert code == 0
    assert "Rows of each stage (split 2,4,4, seed 0)" in text
    for piece in (
        f"stage 2 · {path}, line ",
        "   prompt  Human: xxx q ",
        "   chosen   yes",
        "      end  </s>",
        " rejected   no ",
        "  padding  ",
        "tokens, up to the longest row shown",
        "prompt cut to max_prompt_length",
        "      cut  xxxx",
        "response longer than max_response_length",
        "  dropped  chosen: yes yes yes",
    ):
        assert piece in text, piece
    assert "stage 1 ·" not in text


def test_text_of_a_row_cannot_colour_or_move_the_terminal(run, write) -> None:
    rows = [{"prompt": f"[red]q{i}[/red]\x1b[2J", "chosen": "[bold]a", "rejected": "b"} for i in range(30)]
    _, text = run(show, "--data-path", write("a.jsonl", rows), "--model", "MODEL", "--stage", "1")
    assert "[red]q" in text
    assert "\x1b" not in text


TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"q {i}?"},
            {"role": "assistant", "content": "aye"},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "nay", "weight": int(i % 4 > 0)},
            {"role": "user", "content": "So?"},
            {"role": "assistant", "content": "yes"},
        ]
    }
    for i in range(40)
]


def shown(text: str) -> list[str]:
    """The pieces of the first row of stage 1, each with its label."""
    after = text[text.index("stage 1 · ") :].split("\n", 1)[1].split("stage 1 · ")[0]
    return [line.strip() for line in after.splitlines() if line.strip().startswith(("prompt", "counted", "end"))]


def test_every_learned_turn_is_shown_as_counted(run, write) -> None:
    path = write("a.jsonl", [row for row in TALKS if row["messages"][3]["weight"]])
    options = ("--data-path", path, "--model", "MODEL", "--stage", "1", "--rows", "1")
    pieces = shown(run(show, *options)[1])
    assert [piece for piece in pieces if not piece.startswith("prompt")] == [
        "counted   aye", "end  </s>", "counted   nay", "end  </s>", "counted   yes", "end  </s>",
    ]  # fmt: skip
    pieces = shown(run(show, *options, "--learn", "last")[1])
    assert [piece for piece in pieces if not piece.startswith("prompt")] == ["counted   yes", "end  </s>"]


def test_check_show_and_the_run_count_the_same_turns(run, write, settings, template, capfd) -> None:
    """Ten of forty second turns have weight 0; the prompts of all but the last question are cut by a smaller limit."""
    path = write("a.jsonl", TALKS)
    assert (
        "110 assistant turns are learned in 40 conversations of several"
        in (run(check, "--data-path", path, "--model", "MODEL")[1])
    )
    text = run(check, "--data-path", path, "--model", "MODEL", "--max-prompt-length", "30")[1]
    assert "40 assistant turns are learned in 40 conversations of several; 70 are not (cut with their prompt" in text
    values = {"data_split": "1,0,0", "eval_ratio": 0.2}
    report = demonstrations(settings(path, **values), template).report
    assert sum(report[part]["turns"] for part in ("train", "held_out")) == 110
    said = "".join(capfd.readouterr())
    assert f"train rows: {report['train']['turns']:,} assistant turns are learned" in said
    assert f"{path}: 10 × turn with weight=0 is not learned" in said
    report = demonstrations(settings(path, **values, max_prompt_length=30), template).report
    assert sum(report[part]["unlearned"] for part in ("train", "held_out")) == 70
    report = demonstrations(settings(path, **values), template, learn="last").report
    assert sum(report[part]["turns"] for part in ("train", "held_out")) == 40
