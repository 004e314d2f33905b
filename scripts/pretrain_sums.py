"""python -m scripts.pretrain_sums --output-dir DIR: the base model and the data of the arithmetic demo.

A small Llama is trained on sums that people worked, most of them wrongly (data/demo/sums.py); sums to train on and to
hold out are written beside it. scripts/tiny_base.py trains and keeps the model (FORMAT stands for the code).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import click

from data.demo import sums
from rlhf.command import Command
from rlhf.config import build, given, options, setting
from rlhf.json_lines import write_json_lines
from rlhf.template import Template
from scripts import tiny_base
from scripts.tiny_base import TinyBaseSettings

# Of the files that are kept, as in scripts/pretrain_demo.py. To be raised when the same settings would give other
# files: other sums or workings (data/demo/sums.py), another template, another tokenizer, model or training.
FORMAT = 2


class SumsSettings(TinyBaseSettings):
    """The base model's size and training."""

    vocabulary: int = setting(320, "largest number of tokens in the vocabulary", ge=300)
    hidden_size: int = setting(128, "hidden size of the model", ge=16, multiple_of=16)
    layers: int = setting(3, "number of layers of the model", ge=1)
    steps: int = setting(400, "number of optimiser steps", ge=1)


@click.command("python -m scripts.pretrain_sums", cls=Command)
@options(SumsSettings)
def main(**flags: Any) -> int:
    """Pretrain the arithmetic demo's base model and write the demo's data."""
    settings = build(SumsSettings, given(flags), where="")
    tiny_base.hand_over(prepare(settings), settings, "sums", pipeline_values)
    return 0


def pipeline_values(folder: Path) -> dict[str, Any]:
    """The files as settings of the pipeline."""
    return {
        "actor_model": str(folder / "base"),
        "data_path": [str(folder / "sums.jsonl")],
        "evaluate": {"prompts": str(folder / "held_out_sums.jsonl")},
    }


def prepare(settings: SumsSettings) -> Path:
    """The cached folder for these settings; it is made if it is not there."""
    doing = "pretraining the arithmetic demo's base model"
    folder, new = tiny_base.kept(settings, "sums", lambda part: make(part, settings), format=FORMAT, doing=doing)
    tiny_base.say_made(folder, new=new, reads=lambda info: f"loss {info['loss']:.2f} on worked sums")
    return folder


def make(folder: Path, settings: SumsSettings) -> None:
    """Everything that the demo starts from."""
    write_json_lines(folder / "sums.jsonl", sums.training_rows(settings.seed))
    write_json_lines(folder / "held_out_sums.jsonl", sums.held_out_rows(settings.seed))
    tokenizer = make_tokenizer(settings)
    tiny_base.make_base(folder, tokenizer, batches(tokenizer, settings), settings)


def make_tokenizer(settings: SumsSettings) -> Any:
    """A tokenizer of single digits."""
    return tiny_base.new_tokenizer(
        settings, lambda tokenizer: sums.texts(Template(tokenizer), settings.seed), digits=True
    )


def batches(tokenizer: Any, settings: SumsSettings) -> Iterator[Any]:
    """`settings.steps` batches of padded ids [B, T]."""
    parts = [(sums.texts(Template(tokenizer), settings.seed), settings.steps)]
    return tiny_base.text_batches(tokenizer, parts, random=Random(settings.seed), batch_tokens=settings.batch_tokens)


if __name__ == "__main__":
    main()
