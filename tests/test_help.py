"""--help as a user reads it: every option once, under a heading that says what it is for."""

from __future__ import annotations

import importlib
import re
from typing import Any

import click
import pytest
from click.testing import CliRunner

from rlhf.command import UserPath

# Module with a command `main` → the first heading of its help; "Options" where a command has too few for headings.
FIRST_HEADINGS = {
    "train": "Models",
    "step1_sft.__main__": "Models",
    "step2_dpo.__main__": "Models",
    "step2_reward.__main__": "Models",
    "step3_ppo.__main__": "Models",
    "rlhf.chat.session": "Models",
    "rlhf.evaluate.evaluation": "Models",
    "data.show": "Model",
    "data.check": "Data",
    "rlhf.report.page": "Options",
    "step3_ppo.show": "Options",
    "scripts.run_stage": "Options",
    "scripts.learning": "Options",
    "scripts.nightly_kill": "Options",
    "scripts.pretrain_demo": "Options",
    "scripts.pretrain_sums": "Options",
    "scripts.bench_data": "Options",
}
ALWAYS = {"--debug", "--help", "--version"}  # what "Other" may hold


def help_of(module: str, columns: int = 80) -> str:
    command: Any = importlib.import_module(module).main
    shown = CliRunner(env={"COLUMNS": str(columns)}).invoke(command, ["--help"])
    assert shown.exit_code == 0, shown.output
    return shown.output


def options_by_heading(text: str) -> dict[str, list[str]]:
    """`{"Models": ["--model"], ...}`; an option with a second name is listed by its first."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w[\w ]*):", line):
            heading = match[1]
            found[heading] = []
        elif heading and (match := re.match(r"  (--[\w-]+)", line)):
            found[heading].append(match[1])
    return found


@pytest.mark.parametrize("module", FIRST_HEADINGS)
def test_every_option_is_listed_once_under_a_heading(module: str) -> None:
    command: Any = importlib.import_module(module).main
    found = options_by_heading(help_of(module))
    listed = [option for options in found.values() for option in options]
    visible = [p.opts[0] for p in command.params if p.param_type_name == "option" and not p.hidden]
    assert sorted(listed) == sorted({*visible, "--help"})
    assert next(iter(found)) == FIRST_HEADINGS[module]
    assert set(found.get("Other", [])) <= ALWAYS


@pytest.mark.parametrize("module", FIRST_HEADINGS)
@pytest.mark.parametrize("columns", [80, 110])
def test_a_help_fits_its_terminal_and_breaks_no_word(module: str, columns: int) -> None:
    """A word longer than its column is cut in two: `prompt=ques` and `tion,chosen=best`."""
    command: Any = importlib.import_module(module).main
    text = help_of(module, columns)
    assert max(map(len, text.splitlines())) <= columns
    words = set(re.split(r"[\s-]+", text))  # a line may end after a hyphen
    for parameter in command.params:
        about = getattr(parameter, "help", None) or ""
        missing = set(re.split(r"[\s-]+", about)) - words
        assert not missing, f"{parameter.name}: {missing}"


@pytest.mark.parametrize("module", FIRST_HEADINGS)
def test_every_option_is_explained(module: str) -> None:
    """Not by words that need the option before it: "of the sampling", "also", "the second one"."""
    command: Any = importlib.import_module(module).main
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert parameter.help, parameter.name
            assert not re.match(r"(of|to|from|where|which|also) ", parameter.help), parameter.help


@pytest.mark.parametrize("module", FIRST_HEADINGS)
def test_no_line_is_shown_twice(module: str) -> None:
    """--price-per-gpu-hour stood twice in the help of train.py, once with each of two texts."""
    command: Any = importlib.import_module(module).main
    spelled = [word for p in command.params for word in (*p.opts, *p.secondary_opts)]
    assert len(spelled) == len(set(spelled))
    lines = [re.sub(r"\s+", " ", line).strip() for line in help_of(module, 110).splitlines() if line.startswith("  --")]
    assert len(lines) == len(set(lines))
    helps = [p.help.partition("  [")[0] for p in command.params if getattr(p, "help", None) and not p.hidden]
    assert [text for text in helps if helps.count(text) > 1] == []


@pytest.mark.parametrize("module", FIRST_HEADINGS)
def test_every_path_knows_the_home(module: str) -> None:
    """click's own path takes `--output-dir=~/x` for a folder that is called ~."""
    command: Any = importlib.import_module(module).main
    assert [p.name for p in command.params if isinstance(p.type, click.Path) and not isinstance(p.type, UserPath)] == []


def test_the_options_of_the_same_name_are_explained_alike() -> None:
    """A setting of train.py and the setting of a stage that it sets."""
    pipeline = {p.name: p.help for p in importlib.import_module("train").main.params if p.param_type_name == "option"}
    different_on_purpose = {"actor_model", "reward_model", "output_dir", "force"}
    for stage in ("step1_sft", "step2_reward", "step3_ppo"):
        for parameter in importlib.import_module(f"{stage}.__main__").main.params:
            known = pipeline.get(parameter.name)
            if known and parameter.name not in different_on_purpose and "zero" not in parameter.name:
                assert parameter.help.partition("  [")[0] == known.partition("  [")[0], parameter.name


def test_options_after_the_stage_of_run_stage_are_the_stage_s() -> None:
    command: Any = importlib.import_module("scripts.run_stage").main
    runner = CliRunner()
    assert "--lora-rank" in runner.invoke(command, ["1", "step1_sft", "--help"]).output
    assert "NUM_GPUS" in runner.invoke(command, ["--help"]).output
