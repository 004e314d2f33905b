"""python -m scripts.memory_table: writes the tables of docs/memory.md, the largest models that fit each GPU.

All three stages must fit, by the plan's arithmetic: sequences of 256 + 256 tokens, one row in a forward pass,
activations computed again. Of the layouts below the first that fits a model is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

import step1_sft.spec
import step2_reward.spec
import step3_ppo.spec
from rlhf.command import Command
from rlhf.console import say
from rlhf.errors import EXIT_DONE
from rlhf.files import write_text
from rlhf.hardware import Machine
from rlhf.memory.cards import described
from rlhf.memory.known import known_config
from rlhf.memory.phases import stage_memory
from rlhf.memory.shapes import shape_of
from rlhf.memory.weights import count_weights
from rlhf.models.names import ALIASES
from step1_sft.config import SFTConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- {}: written by python -m scripts.memory_table -->", "<!-- end -->"
CARDS, RANKS = (16, 24, 40, 48, 80, 141), (1, 8)
METHODS = ("full", "full, offloaded", "LoRA", "LoRA, offloaded")
# Family → its reward model: the smallest that reads the same tokens and is of use.
FAMILIES = {"opt": "opt-350m", "qwen2.5": "qwen2.5-0.5b"}
# What DeepSpeed-Chat's announcement (April 2023) gives as its largest models: GPUs, GB, model.
THEIRS = ((1, 32, "opt-2.7b"), (1, 40, "opt-6.7b"), (1, 80, "opt-13b"), (8, 80, "opt-66b"))


@dataclass(frozen=True)
class Layout:
    """Settings of stage 3 that decide on memory, in words."""

    words: str
    settings: Mapping[str, Any]


def layouts(method: str, ranks: int) -> Iterator[Layout]:
    """The layouts of a method, the fastest first."""
    more: dict[str, Any] = {"lora_rank": 64} if method.startswith("LoRA") else {}
    offload = method.endswith("offloaded")
    more |= {"offload_optimizer": True} if offload else {}
    whole = {"actor_zero_stage": 2, "critic_zero_stage": 2}
    shared = {f"{role}_zero_stage": 3 for role in ("actor", "critic", "reference", "reward")}
    if ranks == 1:
        yield Layout("ZeRO 2", whole | more)
        yield Layout("ZeRO 2, no EMA", whole | more | {"ema": False})
        if "lora_rank" in more:
            yield Layout("ZeRO 2, no copy", whole | more | {"inference_copy": "off"})
        if offload:
            alone = {"actor_zero_stage": 3, "critic_zero_stage": 3}
            yield Layout("ZeRO 3", alone | more)
            yield Layout("ZeRO 3, no copy", alone | more | {"inference_copy": "off"})
        return
    for size in (1, 2, 4, 8):
        yield Layout(f"ZeRO 3, tp {size}", shared | more | {"inference_tp_size": size})
    yield Layout("ZeRO 3, no copy", shared | more | {"inference_copy": "off"})


def fits(model: str, reward: str, layout: Layout, ranks: int, gigabytes: float) -> bool:
    """Whether all stages of a run fit."""
    machine, card = Machine(ranks=ranks, gpus=True, bf16=True), described(gigabytes)
    models = {name: known_config(name) for name in (model, reward)}
    shape = shape_of(models[model] or {})
    size = layout.settings.get("inference_tp_size", 1)
    if shape is None or shape.heads % size or shape.kv_heads % size:
        return False
    shared: dict[str, Any] = {"dtype": "bf16", "micro_batch_size": 1, "activation_checkpointing": True}
    own = {key: layout.settings[key] for key in ("lora_rank", "offload_optimizer") if key in layout.settings}
    zero_stage = layout.settings["actor_zero_stage"]
    batches = {"rollout_batch_size": 16 * ranks, "mini_batch_size": 8 * ranks}
    stages = (  # the largest first
        (
            step3_ppo.spec.SPEC,
            PPOConfig(**shared, **batches, **layout.settings),
            {"actor_model": model, "reward_model": reward},
        ),
        (step1_sft.spec.SPEC, SFTConfig(zero_stage=zero_stage, **shared, **own), {"model": model}),
        (step2_reward.spec.SPEC, RewardConfig(zero_stage=zero_stage, **shared, **own), {"model": reward}),
    )
    for spec, config, names in stages:
        work = spec.workload(config, {key: models[name] or {} for key, name in names.items()}, machine)
        assert work is not None
        if stage_memory(work, machine, capacity=card.usable).largest.total > card.usable:
            return False
    return True


@cache
def family(name: str) -> list[str]:
    """The aliases of a family, the largest first."""
    sizes = {alias: count_weights(shape) for alias in ALIASES if (shape := shape_of(known_config(alias) or {}))}
    return sorted((alias for alias in sizes if alias.startswith(f"{name}-")), key=lambda a: sizes[a], reverse=True)


def largest(models: Sequence[str], reward: str, method: str, ranks: int, gigabytes: float) -> tuple[str, str]:
    """The largest model that fits, and the layout; two empty strings if none does."""
    for model in models:
        for layout in layouts(method, ranks):
            if fits(model, reward, layout, ranks, gigabytes):
                return model, layout.words
    return "", ""


def largest_table(ranks: int) -> str:
    head = "| GPU | " + " | ".join(f"{name}, {method}" for name in FAMILIES for method in METHODS) + " |"
    lines = [head, "|---" * (1 + len(FAMILIES) * len(METHODS)) + "|"]
    for card in CARDS:
        cells = []
        for name, reward in FAMILIES.items():
            for method in METHODS:
                model, words = largest(family(name), reward, method, ranks, card)
                cells.append(f"{model.removeprefix(name + '-')} ({words})" if model else "–")
        lines.append(f"| {f'{ranks} × ' if ranks > 1 else ''}{card} GB | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison() -> str:
    lines = ["| GPUs | DeepSpeed-Chat | here | by |", "|---|---|---|---|"]
    for ranks, card, theirs in THEIRS:
        found = [(*largest(family("opt"), "opt-350m", method, ranks, card), method) for method in METHODS]
        order = family("opt")
        model, words, method = min(
            (each for each in found if each[0]), key=lambda each: order.index(each[0]), default=("–", "", "")
        )
        lines.append(f"| {ranks} × {card} GB | {theirs} | {model} | {method}; {words} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with its tables made again."""
    tables = {
        "one GPU": largest_table(1),
        "eight GPUs": largest_table(8),
        "DeepSpeed-Chat": comparison(),
    }
    for name, table in tables.items():
        before, begin, rest = page.partition(BEGIN.format(name))
        assert begin, f"docs/memory.md has no place for the table '{name}'"
        _, end, after = rest.partition(END)
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


@click.command("memory_table", cls=Command, help=__doc__)
def main() -> int:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    say(f"written: {PAGE}")
    return EXIT_DONE


if __name__ == "__main__":
    main()
