"""python -m scripts.learning: does the demo learn, and is a bad reward model noticed? Runs it and prints tables.

For each seed the whole demo runs. The tables show the gold score of each stage's model, its parts, length and KL, and,
for the iterations of PPO, the reward model's score beside the gold score of the same responses: the point from which
only the first one rises can be seen. The first seed also gets three more runs: PPO with the pretraining mix, with the
perplexity of text with and without it; PPO with a reward model that was not trained, which the gate stops; and PPO with
a reward model that was taught to prefer length, which the diagnosis names. All of it takes about half an hour on two
cores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from data.demo.gold import gold_score
from rlhf import console
from rlhf.command import Command, UserPath
from rlhf.errors import EXIT_DONE, EXIT_USER, RLHFError
from rlhf.json_lines import read_json_lines, write_json_lines
from rlhf.metrics import read_metrics
from scripts.method_figures import LogProbs
from scripts.nightly_kill import train


class NotAsPlanned(RLHFError):
    """A run did not end as it should; the text holds the end of its output."""


@click.command("python -m scripts.learning", cls=Command)
@click.option(
    "--output-dir",
    type=UserPath(),
    default=Path("output-learning"),
    show_default=True,
    help="folder of all runs; finished ones are not run again",
)
@click.option("--seeds", default="0,1,2", show_default=True, help="seeds of the demo, one run each")
@click.option("--only-seeds", is_flag=True, help="the demo alone, without the mix and the bad reward models")
@click.argument("arguments", nargs=-1)
def main(output_dir: Path, seeds: str, only_seeds: bool, arguments: tuple[str, ...]) -> int:
    """Run the demo for several seeds, show what it learns, and show whether a bad reward model is noticed.

    It takes about half an hour on two cores. ARGUMENTS are more options for train.py.
    """
    numbers = [int(seed) for seed in seeds.split(",")]
    folders = []
    for seed in numbers:
        folders.append(output_dir / f"seed-{seed}")
        console.say(f"the demo with seed {seed}: {folders[-1]}")
        expect(EXIT_DONE, ["--seed", str(seed), *arguments], folders[-1])
    show_gold(numbers, folders)
    show_parts(numbers, folders)
    show_along(numbers, folders)
    if not only_seeds:
        first = folders[0]
        show_mix(first, output_dir / "mix", arguments)
        show_untrained(first, output_dir / "untrained", arguments)
        show_length_biased(first, output_dir / "length-biased", arguments)
    return EXIT_DONE


def expect(code: int, words: Sequence[str], output: Path, *, recipe: str = "demo") -> str:
    """Run train.py, which must end with `code`; returns its output."""
    ended, said = train(["--recipe", recipe, *words], output)
    if ended != code:
        raise NotAsPlanned(f"train.py ended with {ended} instead of {code}: {said[-600:]}")
    return said


# --- the tables ------------------------------------------------------------------------------------------------------


def show_gold(seeds: Sequence[int], folders: Sequence[Path]) -> None:
    """Gold score of each model, and PPO's KL and length."""
    rows = []
    for seed, folder in zip(seeds, folders, strict=True):
        models = {m["label"]: m for m in read_json(folder / "evaluation.json")["models"]}
        gold = {label: m["score"]["mean"] for label, m in models.items()}
        last = read_metrics(folder / "step3_ppo" / "metrics.jsonl")[-1]
        shown = [f"{gold[label]:.3f}" for label in ("base", "SFT", "PPO", "EMA")]
        gain = f"{gold['PPO'] - gold['SFT']:+.3f}"
        rows.append(
            [seed, *shown, gain, last["ppo/kl"], models["SFT"]["length"]["mean"], models["PPO"]["length"]["mean"]]
        )
    columns = ["seed", "base", "SFT", "PPO", "EMA", "PPO − SFT", "KL", "length SFT", "length PPO"]
    console.table("gold score on held-out prompts", columns, rows)


def show_parts(seeds: Sequence[int], folders: Sequence[Path]) -> None:
    """How many answers are right and how many are about something else, and how courteous they are."""
    rows = []
    for seed, folder in zip(seeds, folders, strict=True):
        for model in read_json(folder / "evaluation.json")["models"]:
            parts = {name: part["mean"] for name, part in model["score"]["parts"].items()}
            shares = [parts["correct"], 1 - parts["on topic"], parts["courteous"]]
            rows.append([seed, model["label"], *(f"{share:.0%}" for share in shares)])
    console.table("answers to held-out prompts", ["seed", "model", "right", "off topic", "courteous"], rows)


def show_along(seeds: Sequence[int], folders: Sequence[Path]) -> None:
    """For the iterations of PPO, the reward model's score beside the gold score of the same responses."""
    table: dict[int, list[str]] = {}
    for folder in folders:
        for path in sorted((folder / "step3_ppo" / "rollouts").glob("iteration-*.jsonl")):
            iteration = int(path.stem.rpartition("-")[2])
            rows = [line.value() for line in read_json_lines(path)]
            gold = sum(gold_score(r["prompt"][-1]["content"], r["response"]) for r in rows) / len(rows)
            score = sum(r["score"] for r in rows) / len(rows)
            table.setdefault(iteration, []).append(f"{score:.2f} / {gold:.3f}")
    whole = [[iteration, *cells] for iteration, cells in sorted(table.items()) if len(cells) == len(folders)]
    console.table("along PPO: reward model's score / gold score", ["iteration", *(f"seed {s}" for s in seeds)], whole)


def show_mix(first: Path, output: Path, arguments: Sequence[str]) -> None:
    """Perplexity of pretraining text after PPO, without and with the pretraining mix."""
    text = first / "prepare" / "demo" / "pretraining.jsonl"
    expect(EXIT_DONE, [*from_stage_2(first), "--ptx-data", str(text), "--ptx-coef", "1.0", *arguments], output)
    rows = [
        [label, f"{text_perplexity(model, text):.2f}"]
        for label, model in (
            ("SFT", first / "step1_sft" / "model"),
            ("PPO", first / "step3_ppo" / "actor"),
            ("PPO with the mix", output / "step3_ppo" / "actor"),
        )
    ]
    console.table("perplexity of pretraining text", ["model", "perplexity"], rows)


def show_untrained(first: Path, output: Path, arguments: Sequence[str]) -> None:
    """A reward model after a single step at a tiny learning rate: the gate must stop PPO."""
    untrained = ["--stages", "2,3", "--sft-model", str(first / "step1_sft" / "model")]
    untrained += ["--set", "step2_reward.max_steps=1", "--set", "step2_reward.learning_rate=1e-12"]
    said = expect(EXIT_USER, [*untrained, *arguments], output)
    console.say("an untrained reward model is stopped by the gate:")
    console.say("\n".join(f"  {line}" for line in said.splitlines() if line.startswith("error:")))


def show_length_biased(first: Path, output: Path, arguments: Sequence[str]) -> None:
    """A reward model that was taught to prefer longer responses: PPO, forced past the gate, must warn of it."""
    pairs = output.parent / "longer-is-better.jsonl"
    rows = [line.value() for line in read_json_lines(first / "prepare" / "demo" / "preferences.jsonl")]
    for row in rows:
        row["rejected"], row["chosen"] = sorted((row["chosen"], row["rejected"]), key=len)
    write_json_lines(pairs, rows)
    biased = ["--stages", "2,3", "--sft-model", str(first / "step1_sft" / "model"), "--data-path", str(pairs)]
    said = expect(EXIT_DONE, [*biased, "--force", "--max-steps", "60", *arguments], output)
    signs = [line for line in said.splitlines() if "length" in line and line.startswith("warning:")]
    if not signs:
        raise NotAsPlanned("a reward model that pays for length was not diagnosed")
    console.say("a reward model that pays for length is diagnosed:")
    console.say("\n".join(f"  {line}" for line in signs[:4]))


def from_stage_2(first: Path) -> list[str]:
    """The options of a run of stage 3 with the models of another run."""
    sft, reward = first / "step1_sft" / "model", first / "step2_reward" / "model"
    return ["--stages", "3", "--sft-model", str(sft), "--reward-model", str(reward)]


def text_perplexity(model: Path, text: Path, *, rows: int = 200) -> float:
    """exp of the mean loss per token over the first rows of a file of texts."""
    logprob = LogProbs(model)
    texts = [logprob.tokenizer(line.value()["text"])["input_ids"] for line in islice(read_json_lines(text), rows)]
    count = sum(len(ids) - 1 for ids in texts)
    return math.exp(-sum(logprob([([], ids) for ids in texts])) / max(count, 1))


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
