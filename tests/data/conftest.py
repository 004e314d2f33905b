"""Small sources on disk, a template on a byte-level tokenizer, and settings whose cache is temporary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from data.collate import collate_demonstrations
from data.config import DataSettings
from data.encode import Encoder, Limits
from data.example import Example, Remark, prompt_json
from rlhf.template import Template, install_template
from tests.helpers.tiny import tiny_tokenizer

Write = Callable[[str, Iterable[Any]], str]


@pytest.fixture(scope="session")
def template() -> Template:
    tokenizer = tiny_tokenizer()
    install_template(tokenizer)
    return Template(tokenizer)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("a.jsonl", rows)` writes rows (text as it is, else as JSON), one per line, and gives the path."""

    def write_rows(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DataSettings]:
    def make(*paths: str, **values: Any) -> DataSettings:
        return DataSettings(data_path=list(paths), data_cache_dir=tmp_path / "cache", **values)

    return make


@pytest.fixture
def pairs() -> Callable[..., list[dict[str, str]]]:
    """`pairs(3)`: rows with prompt, chosen and rejected, all different."""

    def make(count: int, name: str = "q") -> list[dict[str, str]]:
        return [{"prompt": f"{name} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]

    return make


@pytest.fixture
def run(tmp_path: Path, capfd, monkeypatch) -> Any:
    """`run(check, "--data-path", …)` → (exit code, what was printed), with a tokenizer on disk at `run.model`."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(module: Any, *arguments: str) -> tuple[int, str]:
        words = [str(tmp_path / "tokenizer") if a == "MODEL" else a for a in arguments]
        code = module.main.main(words, standalone_mode=False)
        return code, capfd.readouterr().out

    return call


@pytest.fixture
def counted(template: Template) -> Callable[[Iterable[Example | Remark]], list[tuple[str, ...]]]:
    """Examples → per example the decoded prompt and, of each response, the decoded tokens that count in its loss."""

    def decode(examples: Iterable[Example | Remark]) -> list[tuple[str, ...]]:
        found = []
        for example in examples:
            if isinstance(example, Remark):
                continue
            texts: list[str] = []
            for response in filter(None, (example.chosen, example.rejected)):
                encoder = Encoder(template, Limits(10_000, 10_000), "demonstrations")
                rows = encoder(
                    {"prompt": [prompt_json(example.prompt)], "chosen": [response], "source": [0], "where": [""]}
                )
                row = {name: values[0] for name, values in rows.items()}
                batch = collate_demonstrations([row], pad_token_id=0)
                ids, mask = batch.input_ids_BT[0], batch.loss_mask_BT[0]
                texts = texts or [str(template.tokenizer.decode(ids[~mask]))]
                texts.append(str(template.tokenizer.decode(ids[mask])))
            found.append(tuple(texts or [str(template.tokenizer.decode(template.prompt_ids(example.prompt)))]))
        return found

    return decode
