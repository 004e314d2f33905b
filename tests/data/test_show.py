"""`python -m data.show`, as a user runs it."""

from __future__ import annotations

from data import show


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
