"""Tiny base models of the demos: settings, tokenizer, batches, a Llama trained with plain torch, and the folder that
keeps what was made.

A demo's base model and data are kept in the user's cache folder under a hash of everything that they depend on; a later
run takes them from there. `prepare.json` in the output folder names the files as settings of the pipeline. Where the
CPU multiplies in bf16, Muon's products are in bf16, else in fp32: the trained weights differ in their last digits, and
are kept apart.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from data.cache import build_once, default_folder, key_of
from rlhf import console
from rlhf.config import Config, setting
from rlhf.files import new_folder, write_json
from rlhf.template import install_template

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
POOL = 2000  # texts that are sorted by length at a time, so that a batch has little padding
LONGEST = 128  # tokens of a text; the rest is cut off
TOKENIZER_TEXTS = 4000
LARGEST_GRADIENT_NORM = 1.0


class TinyBaseSettings(Config):
    """A tiny base model's size and training."""

    output_dir: Path = setting(Path("output/prepare"), "folder of the files and of prepare.json")
    cache_dir: Path | None = setting(None, "folder that keeps them for other runs; default: demo in the cache folder")
    seed: int = setting(0, "seed of text, weights and data", ge=0)
    vocabulary: int = setting(1536, "largest number of tokens in the vocabulary", ge=300)
    hidden_size: int = setting(192, "hidden size of the model", ge=16, multiple_of=16)
    layers: int = setting(4, "number of layers of the model", ge=1)
    steps: int = setting(300, "number of optimiser steps", ge=1)
    batch_tokens: int = setting(2048, "tokens of one optimiser step", ge=LONGEST)
    learning_rate: float = setting(0.003, "learning rate of embeddings and norms (AdamW)", gt=0)
    matrix_learning_rate: float = setting(0.01, "learning rate of the weight matrices (Muon)", gt=0)

    def of_the_model(self) -> dict[str, Any]:
        """What model and data depend on, as JSON values."""
        return self.model_dump(mode="json", exclude={"output_dir", "cache_dir"})


# --- what is kept -----------------------------------------------------------------------------------------------------


def kept(
    settings: TinyBaseSettings, kind: str, make: Callable[[Path], None], *, format: int, doing: str
) -> tuple[Path, bool]:
    """The cached folder of this `kind` for these settings, and whether `make` has just made it."""
    from tokenizers import __version__ as tokenizers_version
    from torch import __version__ as torch_version
    from transformers import __version__ as transformers_version

    from rlhf.training.distributed import computes_in_bf16

    versions = [str(torch_version), transformers_version, tokenizers_version]
    root = settings.cache_dir or default_folder().with_name("demo")
    key = key_of([settings.of_the_model(), versions, computes_in_bf16()], format=format)
    new = not (root / f"{kind}-{key}").exists()
    return build_once(root, kind, key, make, doing=doing), new


def hand_over(made: Path, settings: TinyBaseSettings, name: str, values: Callable[[Path], Mapping[str, Any]]) -> None:
    """Copy what was made to `name` in the output folder, and write prepare.json, the `values` of that copy."""
    folder = settings.output_dir / name
    with new_folder(folder) as temporary:
        shutil.copytree(made, temporary, dirs_exist_ok=True)
    write_json(settings.output_dir / "prepare.json", dict(values(folder)))


def make_base(
    folder: Path,
    tokenizer: Any,
    steps: Iterator[Any],
    settings: TinyBaseSettings,
    measured: Callable[[Any], Mapping[str, Any]] = lambda model: {},
) -> None:
    """`base/`, a model trained on the batches of `steps`, and info.json, with what is `measured` of it."""
    began = time.monotonic()
    model, loss = pretrain(tokenizer, steps, settings)
    seconds = time.monotonic() - began
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    info = {
        "parameters": sum(p.numel() for p in model.parameters()),
        **measured(model),
        "loss": loss,
        "seconds": seconds,
        "settings": settings.of_the_model(),
    }
    write_json(folder / "info.json", info)


def say_made(folder: Path, *, new: bool, reads: Callable[[Mapping[str, Any]], str]) -> None:
    """One line about the base model in `folder`; `reads` says of its info.json what the model can do."""
    made = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    console.say(
        f"base model: {made['parameters'] / 1e6:.1f}M weights, {reads(made)}; "
        f"pretrained in {made['seconds']:.0f} s{'' if new else ' on an earlier run'}, kept in {folder}"
    )


# --- the tokenizer and the batches ------------------------------------------------------------------------------------


def new_tokenizer(settings: TinyBaseSettings, texts: Callable[[Any], Iterator[str]], *, digits: bool = False) -> Any:
    """A byte-level BPE tokenizer trained on `texts(tokenizer without vocabulary)`: their words are one token each; it
    can encode any text. `digits`: each digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def wrapped() -> Any:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD)
        install_template(tokenizer)
        return tokenizer

    core = Tokenizer(models.BPE())
    words: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    core.pre_tokenizer = words
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    core.add_special_tokens([PAD, BOS, EOS])
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(islice(texts(wrapped()), TOKENIZER_TEXTS), trainer)
    return wrapped()


def text_batches(
    tokenizer: Any, parts: Iterable[tuple[Iterator[str], int]], *, random: Random, batch_tokens: int
) -> Iterator[Any]:
    """Batches of padded ids [B, T]: of each part's texts as many as it says; the texts of a batch have about the same
    length."""
    import torch

    for texts, left in parts:
        while left:
            encoded = tokenizer(list(islice(texts, POOL)), add_special_tokens=False)["input_ids"]
            pool = list(_by_length([ids[:LONGEST] for ids in encoded], batch_tokens))
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


# --- the model --------------------------------------------------------------------------------------------------------


def pretrain(tokenizer: Any, batches: Iterator[Any], settings: TinyBaseSettings) -> tuple[Any, float]:
    """A Llama trained from random weights on `settings.steps` batches, and its last loss. Same seed and threads, same
    weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from rlhf.training.distributed import computes_in_bf16
    from scripts.muon import Muon
    from scripts.side_by_side import SideBySide

    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    model, loss = LlamaForCausalLM(LlamaConfig(**architecture(tokenizer, settings))), 0.0
    # Muon on the matrices learns the facts in about half the steps that AdamW needs.
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    muon, adamw = optimizer_options(settings)
    products = torch.bfloat16 if computes_in_bf16() else torch.float32
    parts = SideBySide(model, torch.get_num_threads())
    count = len(parts.models)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, **adamw),
        *(Muon(share, **muon, products=products) for share in (matrices[i::count] for i in range(count)) if share),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate_factor(step, settings.steps))
        for o in optimizers
    ]
    with console.progress("pretraining", total=settings.steps) as bar:
        for step, ids_BT in enumerate(batches, start=1):
            loss = parts.backward(ids_BT, ignore=tokenizer.pad_token_id)
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
            parts.all(optimizer.step for optimizer in optimizers)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.zero_grad()
                schedule.step()
            bar.update(step, {"loss": loss})
    return model.eval(), loss


def architecture(tokenizer: Any, settings: TinyBaseSettings) -> dict[str, Any]:
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


def optimizer_options(settings: TinyBaseSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of Muon, which trains the matrices of the layers, and of AdamW, which trains the rest."""
    muon = {"lr": settings.matrix_learning_rate, "momentum": 0.95}
    return muon, {"lr": settings.learning_rate, "betas": (0.9, 0.95), "weight_decay": 0.0}


def learning_rate_factor(step: int, steps: int) -> float:
    """Of a step, counted from 0: it rises over the first thirty and falls to a twentieth."""
    return min((step + 1) / min(30, steps), 1.0) * (1 - 0.95 * step / steps)
