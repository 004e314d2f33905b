from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data.config import PretrainingMixSettings
from data.preflight import problems

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_good_data_has_no_problems(write, settings) -> None:
    assert problems(settings(write("a.jsonl", [GOOD]))) == []


def test_all_problems_are_reported_at_once(write, settings, tmp_path: Path) -> None:
    broken = write("b.jsonl", [GOOD, "{"])
    other = write("c.jsonl", [{"promt": "q"}])
    found = problems(settings(str(tmp_path / "absent.jsonl"), broken, eval_data_path=[other]))
    assert [line.replace(f"{tmp_path}/", "").split(":")[0] for line in found] == [
        "absent.jsonl does not exist",
        "b.jsonl, line 2",
        "b.jsonl",  # the advice to correct them or to skip them
        "c.jsonl, line 1",
    ]


def test_settings_that_cannot_be(write, settings, tmp_path: Path) -> None:
    path = write("a.jsonl", [GOOD])
    assert problems(settings())[0].startswith("data_path is needed: give --data-path")
    assert problems(settings(f"{path}:0")) == ["the weights of all sources are 0; one must be above 0"]
    assert "the weight -2 must be 0 or more" in problems(settings(f"{path}:-2"))[0]
    assert "'promt' is not one of" in problems(settings(path, columns="promt=q"))[0]
    (found,) = problems(settings(path, columns="prompt=prompt,chosen=chozen"))
    assert "has no column 'chozen'; did you mean 'chosen'" in found
    (found,) = problems(settings(path, columns="prompt=nowhere"))
    assert found.startswith("--columns prompt=nowhere: no source has these")
    (tmp_path / "file").write_text("")
    (found,) = problems(settings(path).model_copy(update={"data_cache_dir": tmp_path / "file"}))
    assert "is a file; name a folder" in found


def test_data_that_a_stage_cannot_use_is_refused_before_it_starts(write, settings) -> None:
    answers = write("a.jsonl", [{"prompt": "q", "completion": "a"}])
    assert problems(settings(answers), stage=1) == problems(settings(answers), stage=3) == []
    assert problems(settings(answers), stage=2) == [
        "stage 2 needs rows with chosen and rejected; the sources have none (they are read as prompts with a response: "
        "prompt, chosen from completion)"
    ]
    assert problems(settings(answers, data_split="1,0,1"), stage=1) == []
    assert problems(settings(answers, data_split="0,1,1"), stage=1) == [
        "data_split=0,1,1 leaves stage 1 no rows; give it a share, or skip it"
    ]


def test_the_pretraining_mix_has_its_own_column(write, tmp_path: Path) -> None:
    path = write("a.jsonl", [{"body": "Once."}])
    assert "fit no known shape" in problems(PretrainingMixSettings(ptx_data=[path]))[0]
    assert problems(PretrainingMixSettings(ptx_data=[path], ptx_column="body")) == []


def test_a_hub_dataset_that_cannot_be_reached_says_so(settings, monkeypatch) -> None:
    from huggingface_hub import HfApi

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    (found,) = problems(settings("Dahoas/rm-statik"))
    assert found.startswith("Dahoas/rm-statik is neither a file or folder here nor a hub dataset that can be loaded")
    assert "did you mean 'Dahoas/rm-static'" in found
    assert "no route to the hub" in found


@pytest.mark.process
def test_no_torch_is_loaded(write) -> None:
    """Bad input is answered before seconds are spent on importing torch."""
    path = write("a.jsonl", [GOOD])
    code = (
        "import sys; from data.config import DataSettings; from data.preflight import problems\n"
        f"assert problems(DataSettings(data_path=[{path!r}])) == []\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
