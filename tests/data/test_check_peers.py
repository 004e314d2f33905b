"""data.check, data.show and the run say the same of every file of other tools (tests/helpers/peers)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data import check, show
from data.announcement import announce
from data.stage_data import prompts
from rlhf.errors import DataError
from tests.helpers.peers import File, files

TIMES = 12  # so that each stage gets rows
FILES = files()
READ = {name: file for name, file in FILES.items() if file.read and not file.refused and not file.columns}
PROMPTS = [
    name
    for name, file in READ.items()
    if any(prompt for prompt, *_ in file.read)
    and not any(" | t:" in prompt for prompt, *_ in file.read)  # the template below writes no results of tools
]
REFUSED = [name for name, file in FILES.items() if file.refused and not file.columns]
NOTE = re.compile(r"[\w-]+\.jsonl: \d+ × .*")


def said(text: str, names: list[str]) -> set[str]:
    """What was said of each file, without the mark before it."""
    return {
        found[0].strip()
        for line in text.splitlines()
        if (found := NOTE.search(line)) and found[0].split(":")[0] in names
    }


def shapes(text: str, names: list[str]) -> set[str]:
    return {line for line in text.splitlines() if line.split(":")[0] in names and line.endswith(" rows)")}


def test_check_show_and_the_run_say_the_same(
    run, write, settings, template, monkeypatch, tmp_path: Path, capfd
) -> None:
    """One of them used to say nothing of what another one leaves out."""
    monkeypatch.chdir(tmp_path)
    names = [f"{number}.jsonl" for number, _ in enumerate(PROMPTS)]
    for name, file in zip(names, PROMPTS, strict=True):
        write(name, FILES[file].rows * TIMES)
    flags = [word for name in names for word in ("--data-path", name)]
    code, checked = run(check, *flags, "--model", "MODEL")
    assert code == 0
    show.main.main(
        [*flags, "--model", str(tmp_path / "tokenizer"), "--stage", "3", "--rows", "1"], standalone_mode=False
    )
    shown = "".join(capfd.readouterr())
    report = prompts(settings(*names, data_split="0,0,1"), template).report
    capfd.readouterr()
    announce(report)
    ran = "".join(capfd.readouterr())
    assert said(checked, names) == said(shown, names) == said(ran, names)
    assert shapes(checked, names) == shapes(shown, names) == shapes(ran, names)
    assert len(shapes(ran, names)) == len(names)
    assert len(said(ran, names)) == sum(len(FILES[file].remarks) for file in PROMPTS) > 60


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_all(name: str, run, write, settings, template) -> None:
    file: File = FILES[name]
    path = write("a.jsonl", file.rows * TIMES)
    with pytest.raises(DataError) as caught:
        prompts(settings(path), template)
    assert any(file.refused in line for line in caught.value.problems)
    for module in (check, show):
        try:
            code, text = run(module, "--data-path", path, "--model", "MODEL")
        except DataError as error:
            text, code = "\n".join(error.problems), 2
        assert code == 2
        assert file.refused[:60] in text
