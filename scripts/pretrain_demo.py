"""python -m scripts.pretrain_demo --output-dir DIR: pretrains the demo's base model and writes the demo's data.

A tokenizer and a small Llama are trained on generated text (data/demo/); preferences, held-out prompts and pretraining
text are written beside them. scripts/tiny_base.py trains and keeps the model (FORMAT stands for the code).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import click

from data.demo import corpus, preferences
from data.demo.dialogues import ask, statements
from data.demo.facts import FACTS
from rlhf.command import Command
from rlhf.config import build, given, options, setting
from rlhf.json_lines import write_json_lines
from rlhf.template import Template
from scripts import tiny_base
from scripts.tiny_base import TinyBaseSettings

# Of the files that are kept, and part of their key, beside the settings and the libraries' versions. To be raised when
# the same settings would give other files: other text or preferences (data/demo/), another template (rlhf/template.py),
# another tokenizer, model or training (scripts/tiny_base.py, which scripts/pretrain_sums.py shares).
FORMAT = 4
PRETRAINING_ROWS = 1000


class DemoSettings(TinyBaseSettings):
    """The base model's size and training."""

    schoolbook: float = setting(
        0.6, "share of the steps, at the start, on short, clean text; the rest is on people's dialogues", ge=0, le=1
    )


@click.command("python -m scripts.pretrain_demo", cls=Command)
@options(DemoSettings)
def main(**flags: Any) -> int:
    """Pretrain the demo's base model and write the demo's data."""
    settings = build(DemoSettings, given(flags), where="")
    tiny_base.hand_over(prepare(settings), settings, "demo", pipeline_values)
    return 0


def pipeline_values(folder: Path) -> dict[str, Any]:
    """The files as settings of the pipeline."""
    base = str(folder / "base")
    return {
        "actor_model": base,
        "reward_model": base,
        # The weights only concern stage 1, the one that reads both: it learns of people's answers as they are.
        "data_path": [f"{folder / 'demonstrations.jsonl'}:0.98", f"{folder / 'preferences.jsonl'}:0.02"],
        "evaluate": {"prompts": str(folder / "held_out_prompts.jsonl")},
    }


def prepare(settings: DemoSettings) -> Path:
    """The cached folder for these settings; it is made if it is not there."""
    folder, new = tiny_base.kept(
        settings, "base", lambda part: make(part, settings), format=FORMAT, doing="pretraining the demo's base model"
    )
    tiny_base.say_made(folder, new=new, reads=lambda info: f"reads {info['facts_read']:.0%} of {len(FACTS)} facts")
    return folder


def make(folder: Path, settings: DemoSettings) -> None:
    """Everything that the demo starts from."""
    write_json_lines(folder / "demonstrations.jsonl", preferences.demonstrations(Random(settings.seed)))
    write_json_lines(folder / "preferences.jsonl", preferences.preferences(Random(settings.seed)))
    write_json_lines(folder / "held_out_prompts.jsonl", preferences.held_out_prompts(Random(settings.seed)))
    facts = statements(Random(settings.seed))
    write_json_lines(folder / "pretraining.jsonl", ({"text": text} for text in islice(facts, PRETRAINING_ROWS)))
    tokenizer = make_tokenizer(settings)
    measured = lambda model: {"facts_read": facts_read(model, Template(tokenizer))}  # noqa: E731
    tiny_base.make_base(folder, tokenizer, batches(tokenizer, settings), settings, measured)


def make_tokenizer(settings: DemoSettings) -> Any:
    """A tokenizer of the demo's words."""
    return tiny_base.new_tokenizer(
        settings, lambda tokenizer: corpus.texts(Template(tokenizer), Random(settings.seed), people=True)
    )


def batches(tokenizer: Any, settings: DemoSettings) -> Iterator[Any]:
    """`settings.steps` batches of padded ids [B, T]: first of short, clean text, then of people's dialogues."""
    random, template = Random(settings.seed), Template(tokenizer)
    clean = round(settings.schoolbook * settings.steps)
    parts = (
        (corpus.texts(template, random, people=people), steps)
        for people, steps in ((False, clean), (True, settings.steps - clean))
    )
    return tiny_base.text_batches(tokenizer, parts, random=random, batch_tokens=settings.batch_tokens)


def facts_read(model: Any, template: Template) -> float:
    """Share of facts that the model reads in a prompt: asked for in a held-out way, its answer goes on with the right
    word."""
    import torch

    read, random = 0, Random(0)
    for fact in FACTS:
        prompt = ask(fact, fact.question(fact.held_out), random)
        asked, said = template.prompt_ids([{"role": "user", "content": prompt}]), template.response_ids(fact.reply())
        lead = len(template.response_ids(fact.reply().partition(fact.answer)[0].rstrip(), end=False))
        with torch.no_grad():
            logits_V = model(torch.tensor([asked + said[:lead]])).logits[0, -1]
        read += int(logits_V.argmax()) == said[lead]
    return read / len(FACTS)


if __name__ == "__main__":
    main()
