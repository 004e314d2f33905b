"""Evaluation: what is read as a prompt, what counts as ended, the whole way, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rlhf.errors import ConfigError, DataError
from rlhf.evaluate.evaluation import EvaluateConfig, answer_all, evaluate, main, read_prompts
from rlhf.evaluate.judges import Asked, Response
from rlhf.generation.sampler import Generation
from rlhf.generation.speaker import Speaker
from rlhf.generation.streaming import find_stops
from rlhf.template import Template, install_template
from tests.helpers.tiny import save_tiny, tiny_tokenizer

ASKED = [Asked(1, [{"role": "user", "content": "hi"}]), Asked(4, [{"role": "user", "content": "Hello there"}])]


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompts_file(folder: Path, *rows: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_prompts_are_text_or_messages(tmp_path: Path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    path = prompts_file(tmp_path, {"prompt": "hi"}, "", {"prompt": talk}, {"prompt": "too many"})
    asked = read_prompts(path, limit=2)
    assert [(a.row, a.text, len(a.messages)) for a in asked] == [(1, "hi", 1), (3, "c", 3)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "x"}, r"row 2 has no column 'prompt'; did you mean 'promt'\?"),
        ('{"prompt": "x"', "line 2 is not valid JSON: expecting"),
        ([1], "row 2 has no column 'prompt'; --prompt-column names another"),
        ({"prompt": "half \ud83d"}, "row 2: 'prompt' holds half of a surrogate pair"),
        (
            '{"prompt": "x", "n": ' + "1" * 5000 + "}",
            "line 2 is not usable JSON: it has a number of more than",
        ),
        ('{"prompt": "x", "prompt": "y"}', "line 2 has the key 'prompt' twice"),
        ({"prompt": 3}, "row 2: 'prompt' is neither text nor messages"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "row 2: 'prompt' is neither text nor messages that end"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row, message):
    with pytest.raises(DataError, match=message):
        read_prompts(prompts_file(tmp_path, {"prompt": "good"}, row))


def test_files_without_prompts(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no prompts"):
        read_prompts(prompts_file(tmp_path, ""))


def test_a_file_of_something_else_is_named(tmp_path: Path):
    """A pointer that Git LFS left was "not valid JSON: expecting value"."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1\n")
    with pytest.raises(DataError, match="is a Git LFS pointer, not the file itself"):
        read_prompts(path)
    path.write_text(json.dumps({"prompt": "x"}), encoding="utf-16")
    with pytest.raises(DataError, match="is UTF-16 text; save it as UTF-8"):
        read_prompts(path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path)


def test_paths_are_checked_before_models_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--output` could be a folder, which was said when all answers were there; ~ was a folder of this name. And a
    cluster's RANK=1 made the program silent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    prompts_file(tmp_path, {"prompt": "x"})
    config = EvaluateConfig(prompts="~/prompts.jsonl", output="~/new/result.json")  # type: ignore[arg-type]
    assert config.problems() == ["--model is needed: LABEL=MODEL, once for each model"]
    assert config.output == tmp_path / "new" / "result.json"
    ended = CliRunner().invoke(main, ["--prompts=~/prompts.jsonl", "--output=~", "--model", f"{tmp_path}/none"])
    assert ended.exit_code == 2
    assert f"error: --output {tmp_path} is a folder; name a file\n" in ended.stderr
    assert "rank 1" not in ended.stderr
    assert "prompts" not in ended.stderr


def test_all_problems_are_told_at_once(tmp_path: Path):
    config = EvaluateConfig(
        model=[f"a={tmp_path}/x", f"a={tmp_path}/y"], prompts=tmp_path / "none.jsonl", scorer="nowhere:f"
    )
    with pytest.raises(ConfigError) as caught:
        evaluate(config)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("same label", "no folder", "no such file", "there is no module nowhere"):
        assert part in told


# --- responses -------------------------------------------------------------------------------------------------------


class Canned:
    """A sampler whose responses are given, by the row that a prompt has in the file."""

    def __init__(self, tokenizer, *responses: str) -> None:
        self.ids = [tokenizer(r)["input_ids"] for r in responses]
        self.batches: list[list[int]] = []

    def generate(self, prompts, sampling, *, seed, rows):
        self.batches.append(list(rows))
        self.sampling = sampling
        width = max(len(self.ids[r]) for r in rows)
        ids = torch.tensor([self.ids[r] + [0] * (width - len(self.ids[r])) for r in rows])
        mask = torch.tensor([[i < len(self.ids[r]) for i in range(width)] for r in rows])
        return Generation(ids, mask, torch.zeros(ids.shape), torch.zeros(len(rows), dtype=torch.bool))


def canned(*responses: str, limit=None) -> Any:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    template = Template(tokenizer)
    sampler: Any = Canned(tokenizer, *responses)
    return Speaker("actor", "actor", template, sampler, find_stops(template), limit, "")


def test_a_response_has_ended_when_its_last_token_is_the_end_token():
    """The length counts the end token, the text does not show it; batches hold prompts of like length."""
    speaker = canned("Yes.</s>", "Well, I")
    assert answer_all(speaker, ASKED, EvaluateConfig(batch_size=1)) == [
        Response("Yes.", 5, True),
        Response("Well, I", 7, False),
    ]
    assert speaker.sampler.batches == [[1], [0]]


def test_an_invented_turn_is_scored_unless_it_is_cut():
    """PPO's reward model sees what a model writes after its answer; chat does not. Either may be asked for."""
    invented = "No.\n\nHuman: why?"
    responses = answer_all(canned(invented), ASKED[:1], EvaluateConfig())
    assert responses == [Response(invented, 16, False)]
    assert answer_all(canned(invented), ASKED[:1], EvaluateConfig(stop_at_next_turn=True)) == [
        Response("No.", 16, False)
    ]


def test_a_prompt_that_leaves_no_room_is_named():
    with pytest.raises(DataError, match=r"row 4: the prompt's 30 tokens and max_new_tokens=80 exceed the 100 tokens"):
        answer_all(canned(limit=100), ASKED, EvaluateConfig(prompts=Path("p.jsonl"), max_new_tokens=80))


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_models_side_by_side_from_folders_to_json(tmp_path: Path, scorer, capsys):
    """A model against itself wins half; another batch size gives the same responses; text is not read as markup."""
    folder, other = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b", seed=5)
    prompts = prompts_file(tmp_path, *({"prompt": f"[red]{'x' * n}"} for n in range(5)))
    common: dict[str, Any] = {"prompts": str(prompts), "max_new_tokens": 8, "scorer": f"{scorer}:length", "samples": 2}
    models = [f"one={folder}", f"same={folder}", f"other={other}"]
    output = tmp_path / "new" / "evaluation.json"
    arguments = ["--prompts", str(prompts), "--max-new-tokens", "8", "--scorer", f"{scorer}:length", "--samples", "2"]
    for model in models:
        arguments += ["--model", model]
    run = CliRunner().invoke(main, [*arguments, "--output", str(output)], standalone_mode=False, catch_exceptions=False)
    assert run.return_value == 0
    result = json.loads(output.read_text())
    one, same, third = result["models"]
    assert same["score"] == {**one["score"], "win_rate": {"mean": 0.5, "stderr": 0.0}}
    assert same["score"]["gain"] == {"mean": 0.0, "stderr": 0.0}
    assert third["score"]["gain"]["stderr"] > 0
    assert [s["row"] for s in result["samples"]] == [1, 3]
    assert "[red]xx" in run.stdout
    in_parts = evaluate(EvaluateConfig(model=models[:1], **{**common, "scorer": f"{scorer}:parts"}))
    assert in_parts["models"][0]["score"]["mean"] == one["score"]["mean"]
    assert in_parts["models"][0]["score"]["parts"]["asked"] == {"mean": 7.0, "stderr": pytest.approx(0.5**0.5)}
    assert in_parts["samples"][1]["responses"]["one"]["parts"]["asked"] == len("[red]xx")
    again = evaluate(EvaluateConfig(model=models[:1], batch_size=2, **common))
    assert again["models"][0]["score"]["mean"] == one["score"]["mean"]
    assert again["samples"][1]["responses"]["one"] == result["samples"][1]["responses"]["one"]


def test_sampled_responses_do_not_depend_on_the_batch(tmp_path: Path):
    folder = save_tiny(tmp_path / "a")
    prompts = prompts_file(tmp_path, *({"prompt": "x" * n} for n in range(1, 5)))
    texts = [
        [
            sample["responses"]["m"]["text"]
            for sample in evaluate(
                EvaluateConfig(
                    model=[f"m={folder}"],
                    prompts=prompts,
                    temperature=1.0,
                    max_new_tokens=6,
                    batch_size=size,
                    seed=3,
                )
            )["samples"]
        ]
        for size in (1, 4)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1
