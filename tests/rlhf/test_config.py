"""Settings from YAML, flags and --set: wrong ones are named with a way out, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from rlhf.config import Config, build, build_leniently, differences, given, options, parse_sets, read_yaml, setting
from rlhf.errors import ConfigError


class Placed(Config):
    folder: Path = setting(Path("output"), "a place")
    file: Path | None = setting(None, "another place")


class Small(Config):
    learning_rate: float = setting(1e-5, "of the weights", gt=0)
    epochs: int = setting(1, "passes", ge=1)
    schedule: Literal["cosine", "linear"] = setting("cosine", "after the warm-up")
    modules: list[str] = setting(["all"], "names")
    name: str = setting("", "any text")
    every: int | None = setting(None, "steps between", ge=1)
    ema: bool = setting(True, "keep an average")
    log_every: int = setting(1, "steps", resumable=True)


def test_all_problems_come_at_once_and_unknown_keys_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Small, {"learning_rat": 1, "epochs": 0, "schedule": "cosin"}, where="small")
    lines = caught.value.problems
    assert "small.learning_rat is not a setting; did you mean 'learning_rate'?" in lines
    assert "small.epochs=0 is not valid: should be greater than or equal to 1" in lines
    assert any(line.startswith("small.schedule='cosin' is not valid") and "'cosine'" in line for line in lines)
    assert len(lines) == 3


def test_checks_can_go_on_with_what_is_right() -> None:
    config, problems = build_leniently(Small, {"epochs": 0, "name": "kept"}, where="small")
    assert (config.epochs, config.name) == (1, "kept")
    assert len(problems) == 1


def test_sets_are_read_as_the_field_needs_them() -> None:
    """YAML 1.1 reads 1e-5 as text and 007 as a number; a list field takes one value, too."""
    values, problems = parse_sets(
        [
            "small.learning_rate=1e-5",
            "small.modules=q_proj",
            "small.name=7",
            "small.every=null",
            "small.ema=off",
            "free.anything=[1, 2]",
        ],
        {"small": Small, "free": None},
    )
    assert problems == []
    assert values == {
        "small": {"learning_rate": 1e-5, "modules": ["q_proj"], "name": "7", "every": None, "ema": False},
        "free": {"anything": [1, 2]},
    }
    build(Small, values["small"], where="small")


@pytest.mark.parametrize(
    "item, message",
    [
        ("small.epoch=2", "small has no setting 'epoch'; did you mean 'epochs'?"),
        ("smal.epochs=2", "'smal' is not one of small; did you mean 'small'?"),
        ("epochs=2", "write it as package.field=value"),
        ("small.epochs", "write it as package.field=value"),
        ("small.modules=[a", "is not a YAML value; quote it"),
        ("small.name=2026-02-31", "is not a YAML value; quote it"),
    ],
)
def test_a_wrong_set_is_explained(item: str, message: str) -> None:
    _, problems = parse_sets([item], {"small": Small})
    assert len(problems) == 1
    assert message in problems[0]


def test_a_set_given_twice_is_refused() -> None:
    _, problems = parse_sets(["small.epochs=2", "small.epochs=3"], {"small": Small})
    assert problems == ["--set small.epochs is given twice: 2 and 3"]


def test_options_come_from_the_fields_and_only_given_ones_count() -> None:
    """A default that counted as given would overwrite what a recipe says."""
    seen: dict[str, object] = {}

    @click.command()
    @options(Small)
    def command(**flags: object) -> None:
        seen.update(given(flags))

    done = CliRunner().invoke(command, ["--learning-rate", "0.1", "--no-ema", "--modules", "a", "--modules", "b"])
    assert done.exit_code == 0, done.output
    assert seen == {"learning_rate": 0.1, "ema": False, "modules": ["a", "b"]}
    text = CliRunner().invoke(command, ["--help"]).output
    assert "--schedule [cosine|linear]" in text
    assert "[default: 1e-05]" in text


def test_differences_leave_out_what_may_change() -> None:
    old = {**Small().model_dump(mode="json"), "log_every": 50, "epochs": 2, "learning_rate": "1e-5", "gone": 1}
    assert differences(old, Small()) == ["epochs: 2 → 1", "gone: no longer a setting"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", "not valid YAML at line 3"),
        (b"- a\n- b\n", "must hold a mapping of settings, not a list"),
        (b"a: \xe9", "is not UTF-8 text"),
        (b"\xff\xfea\0:\0 \x001\0", "is UTF-16 text; save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file itself"),
        (b"a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "not valid YAML at line 5: 'c' is given twice"),
        (b"a: 2026-02-31\n", "holds a value that cannot be read: day is out of range"),
        (b"a: " + b"1" * 5000, "holds a value that cannot be read: Exceeds the limit"),
        (b"a: " + b"[" * 5000, "holds a value that cannot be read|not valid YAML"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Exception, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_file_of_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_the_tilde_is_the_home_wherever_a_path_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell replaces it in `--folder ~/x` alone: in `--folder=~/x`, in YAML and in --set it made a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: dict[str, object] = {}

    @click.command()
    @options(Placed)
    def command(**flags: object) -> None:
        seen.update(given(flags))

    assert CliRunner().invoke(command, ["--folder=~/x", "--file", "~"]).exit_code == 0
    assert seen == {"folder": tmp_path / "x", "file": tmp_path}
    (tmp_path / "a.yaml").write_text("folder: ~/x\nfile: a/~/b\n")
    config = build(Placed, read_yaml(tmp_path / "a.yaml"), where="")
    assert (config.folder, config.file) == (tmp_path / "x", Path("a/~/b"))
    values, _ = parse_sets(["placed.folder=~/x"], {"placed": Placed})
    config = build(Placed, values["placed"], where="")
    assert config.folder == tmp_path / "x"
    assert differences({"folder": "~/x", "file": None}, config) == []  # a run that an earlier version began
    refused = CliRunner().invoke(command, ["--folder=~no-such-user/x"])
    assert "~no-such-user is the home of no user of this machine" in refused.output
    _, problems = build_leniently(Placed, {"folder": "~no-such-user"}, where="placed")
    assert problems == [
        "placed.folder='~no-such-user' is not valid: ~no-such-user is the home of no user of this machine"
    ]
