"""python -m scripts.pretrain_demo --output-dir DIR: pretrains the demo's base model and writes the demo's data.

A tokenizer and a small Llama are trained on generated text (data/demo/) with plain torch; preferences, held-out prompts
and pretraining text are written beside them. The user's cache folder keeps all of it, under a hash of everything that
it depends on (FORMAT stands for the code); a later run copies it from there. DIR/prepare.json names the files as
settings of the pipeline. Where the CPU multiplies in bf16, Muon's products are in bf16, else in fp32: the trained
weights differ in their last digits, and are kept apart.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import click

from data.cache import build_once, default_folder, key_of
from data.demo import corpus, preferences
from data.demo.dialogues import ask, statements
from data.demo.facts import FACTS
from rlhf import console
from rlhf.command import Command
from rlhf.config import Config, build, given, options, setting
from rlhf.files import new_folder, write_json
from rlhf.json_lines import write_json_lines
from rlhf.template import Template, install_template

# Of the files that are kept, and part of their key, beside the settings and the libraries' versions. To be raised when
# the same settings would give other files: other text or preferences (data/demo/), another template (rlhf/template.py),
# another tokenizer, model or training (here).
FORMAT = 3
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
POOL = 2000  # texts that are sorted by length at a time, so that a batch has little padding
LONGEST = 128  # tokens of a text; the rest is cut off
TOKENIZER_TEXTS = 4000
PRETRAINING_ROWS = 1000
LARGEST_GRADIENT_NORM = 1.0


class DemoSettings(Config):
    """The base model's size and training."""

    output_dir: Path = setting(Path("output/prepare"), "folder of the files and of prepare.json")
    cache_dir: Path | None = setting(None, "folder that keeps them for other runs; default: demo in the cache folder")
    seed: int = setting(0, "seed of text, weights and data", ge=0)
    vocabulary: int = setting(1536, "largest number of tokens in the vocabulary", ge=300)
    hidden_size: int = setting(192, "hidden size of the model", ge=16, multiple_of=16)
    layers: int = setting(4, "number of layers of the model", ge=1)
    steps: int = setting(300, "number of optimiser steps", ge=1)
    batch_tokens: int = setting(2048, "tokens of one optimiser step", ge=LONGEST)
    schoolbook: float = setting(
        0.6, "share of the steps, at the start, on short, clean text; the rest is on people's dialogues", ge=0, le=1
    )
    learning_rate: float = setting(0.003, "learning rate of embeddings and norms (AdamW)", gt=0)
    matrix_learning_rate: float = setting(0.01, "learning rate of the weight matrices (Muon)", gt=0)


@click.command("python -m scripts.pretrain_demo", cls=Command)
@options(DemoSettings)
def main(**flags: Any) -> int:
    """Pretrain the demo's base model and write the demo's data."""
    settings = build(DemoSettings, given(flags), where="")
    made = prepare(settings)
    folder = settings.output_dir / "demo"
    with new_folder(folder) as temporary:
        shutil.copytree(made, temporary, dirs_exist_ok=True)
    write_json(settings.output_dir / "prepare.json", pipeline_values(folder))
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
    from tokenizers import __version__ as tokenizers_version
    from torch import __version__ as torch_version
    from transformers import __version__ as transformers_version

    from rlhf.training.distributed import computes_in_bf16

    values = settings.model_dump(mode="json", exclude={"output_dir", "cache_dir"})
    versions = [str(torch_version), transformers_version, tokenizers_version]
    root = settings.cache_dir or default_folder().with_name("demo")
    key = key_of([values, versions, computes_in_bf16()], format=FORMAT)
    new = not (root / f"base-{key}").exists()
    folder = build_once(root, "base", key, lambda part: make(part, settings), doing="pretraining the demo's base model")
    made = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    console.say(
        f"base model: {made['parameters'] / 1e6:.1f}M weights, reads {made['facts_read']:.0%} of {len(FACTS)} facts; "
        f"pretrained in {made['seconds']:.0f} s{'' if new else ' on an earlier run'}, kept in {folder}"
    )
    return folder


def make(folder: Path, settings: DemoSettings) -> None:
    """Everything that the demo starts from."""
    write_json_lines(folder / "demonstrations.jsonl", preferences.demonstrations(Random(settings.seed)))
    write_json_lines(folder / "preferences.jsonl", preferences.preferences(Random(settings.seed)))
    write_json_lines(folder / "held_out_prompts.jsonl", preferences.held_out_prompts(Random(settings.seed)))
    facts = statements(Random(settings.seed))
    write_json_lines(folder / "pretraining.jsonl", ({"text": text} for text in islice(facts, PRETRAINING_ROWS)))
    began = time.monotonic()
    tokenizer = make_tokenizer(settings)
    model, loss = pretrain(tokenizer, settings)
    seconds = time.monotonic() - began
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    info = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts_read": facts_read(model, Template(tokenizer)),
        "loss": loss,
        "seconds": seconds,
        "settings": settings.model_dump(mode="json", exclude={"output_dir", "cache_dir"}),
    }
    write_json(folder / "info.json", info)


def make_tokenizer(settings: DemoSettings) -> Any:
    """A byte-level BPE tokenizer, trained on the demo's text: its words are one token each; it can encode any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def wrapped() -> Any:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD)
        install_template(tokenizer)
        return tokenizer

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    core.add_special_tokens([PAD, BOS, EOS])
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = corpus.texts(Template(wrapped()), Random(settings.seed), people=True)
    core.train_from_iterator(islice(text, TOKENIZER_TEXTS), trainer)
    return wrapped()


def batches(tokenizer: Any, settings: DemoSettings) -> Iterator[Any]:
    """`settings.steps` batches of padded ids [B, T]; the texts of a batch have about the same length."""
    import torch

    random, template = Random(settings.seed), Template(tokenizer)
    clean = round(settings.schoolbook * settings.steps)
    for people, steps in ((False, clean), (True, settings.steps - clean)):
        text, left = corpus.texts(template, random, people=people), steps
        while left:
            encoded = tokenizer(list(islice(text, POOL)), add_special_tokens=False)["input_ids"]
            pool = list(_by_length([ids[:LONGEST] for ids in encoded], settings.batch_tokens))
            random.shuffle(pool)
            for rows in pool[:left]:
                width = len(rows[-1])
                yield torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
            left -= min(left, len(pool))


def _by_length(rows: list[list[int]], batch_tokens: int) -> Iterator[Sequence[list[int]]]:
    batch: list[list[int]] = []
    for row in sorted(rows, key=len):
        if (len(batch) + 1) * len(row) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)


def pretrain(tokenizer: Any, settings: DemoSettings) -> tuple[Any, float]:
    """A Llama trained from random weights, and its last loss. Same seed and threads, same weights."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from rlhf.training.distributed import computes_in_bf16
    from scripts.muon import Muon

    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    model, loss = LlamaForCausalLM(LlamaConfig(**architecture(tokenizer, settings))), 0.0
    # Muon on the matrices learns the facts in about half the steps that AdamW needs.
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    muon, adamw = optimizer_options(settings)
    products = torch.bfloat16 if computes_in_bf16() else torch.float32
    optimizers = [Muon(matrices, **muon, products=products), torch.optim.AdamW(others, **adamw)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate_factor(step, settings.steps))
        for o in optimizers
    ]
    with console.progress("pretraining", total=settings.steps) as bar:
        for step, ids_BT in enumerate(batches(tokenizer, settings), start=1):
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
            loss_now = cross_entropy(
                logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
            )
            loss_now.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            loss = float(loss_now.detach())
            bar.update(step, {"loss": loss})
    return model.eval(), loss


def architecture(tokenizer: Any, settings: DemoSettings) -> dict[str, Any]:
    """The Llama's configuration."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.hidden_size * 8 // 3,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        # A narrow model learns to copy from its prompt within a hundred steps at two to three times the usual range; at
        # five times, or with output weights of their own, it takes three times as long.
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def optimizer_options(settings: DemoSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of Muon, which trains the matrices of the layers, and of AdamW, which trains the rest."""
    muon = {"lr": settings.matrix_learning_rate, "momentum": 0.95}
    return muon, {"lr": settings.learning_rate, "betas": (0.9, 0.95), "weight_decay": 0.0}


def learning_rate_factor(step: int, steps: int) -> float:
    """Of a step, counted from 0: it rises over the first thirty and falls to a twentieth."""
    return min((step + 1) / min(30, steps), 1.0) * (1 - 0.95 * step / steps)


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
