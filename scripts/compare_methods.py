"""python -m scripts.compare_methods: SFT, DPO, KTO, PPO, RLOO and GRPO on the demo's data with the same budget.

For each seed one SFT model is made, from which all methods start, and one reward model, which those that sample share.
The budget is the number of responses that a gradient is taken of after SFT, counted once for each time: those of the
reward model are a part of it, so PPO, RLOO and GRPO get fewer of their own. Settings are those of recipe demo but for
the number of steps. All models then answer the same held-out prompts.

Each cell, a method with a seed, is kept in OUTPUT/seed-N/METHOD.json, and not made again; one that was stopped begins
anew, so that its time is whole.
"""

from __future__ import annotations

import math
import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from rlhf import console
from rlhf.command import Command, UserPath
from rlhf.config import read_yaml
from rlhf.errors import EXIT_DONE, ConfigError
from rlhf.files import write_json, write_yaml
from rlhf.metrics import read_metrics
from rlhf.pipeline.recipes import RECIPES
from scripts.learning import expect, read_json
from scripts.method_figures import SHARES, Prompts, figures_of, mean, mean_lengths

BUDGET = 12_000  # what recipe demo's reward model and PPO take, about
GROUP = ("--responses-per-prompt", "4")


@dataclass(frozen=True)
class Method:
    """How train.py is called for it, the stage that makes its model, and the model's folder there. `samples`: it learns
    from responses of its own, scored by the reward model."""

    words: tuple[str, ...]
    stage: str
    model: str = "model"
    samples: bool = False


METHODS = {
    "sft": Method(("--stages", "1"), "step1_sft"),
    "dpo": Method(("--method", "dpo", "--stages", "2"), "step2_dpo"),
    "kto": Method(("--method", "kto", "--stages", "2"), "step2_dpo"),
    "ppo": Method(("--stages", "3"), "step3_ppo", "actor", samples=True),
    "rloo": Method(("--stages", "3", "--advantage-estimator", "rloo", *GROUP), "step3_ppo", "actor", samples=True),
    "grpo": Method(("--stages", "3", "--advantage-estimator", "grpo", *GROUP), "step3_ppo", "actor", samples=True),
}
REWARD = Method(("--stages", "2"), "step2_reward")


@dataclass(frozen=True)
class Spent:
    """What a cell took: responses that were trained on and their tokens, with their prompts; CPU seconds; the largest
    resident memory of a process, in bytes."""

    responses: int
    tokens: float
    cpu_seconds: float
    peak_bytes: int

    def after(self, other: Spent) -> Spent:
        """This beside what was needed for it."""
        return Spent(
            self.responses + other.responses,
            self.tokens + other.tokens,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


@dataclass(frozen=True)
class Cell:
    """A method with a seed, in a folder of all methods of the seed."""

    name: str
    seed: int
    folder: Path
    recipe: Path
    budget: int
    answers: int

    @property
    def method(self) -> Method:
        return REWARD if self.name == "reward" else METHODS[self.name]

    @property
    def result(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def stage(self) -> Path:
        return self.folder / self.name / self.method.stage

    def beside(self, name: str) -> Cell:
        """Another cell of the seed."""
        return Cell(name, self.seed, self.folder, self.recipe, self.budget, self.answers)


@click.command("python -m scripts.compare_methods", cls=Command)
@click.option(
    "--output-dir",
    type=UserPath(),
    default=Path("output-methods"),
    show_default=True,
    help="folder of all runs; finished cells are not made again",
)
@click.option("--seeds", default="0,1,2", show_default=True, help="seeds, one run of each method for each")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="methods of the table, in its order")
@click.option("--only", default="", help="methods that are run now; of the others finished cells are shown")
@click.option(
    "--budget", default=BUDGET, show_default=True, help="responses that a method trains on, each time counted"
)
@click.option("--answers", default=4, show_default=True, help="answers to each held-out prompt")
@click.argument("arguments", nargs=-1)
def main(
    output_dir: Path, seeds: str, methods: str, only: str, budget: int, answers: int, arguments: tuple[str, ...]
) -> int:
    """Compare SFT, DPO, KTO, PPO, RLOO and GRPO on the demo's data, with the same budget and the same held-out prompts.

    ARGUMENTS, after `--`, are more options for train.py in all cells.
    """
    names = _known(methods, "--methods")
    running = _known(only, "--only") if only else names
    if not all(seed.isdecimal() for seed in seeds.split(",")):
        raise ConfigError(f"--seeds {seeds}: give whole numbers with commas between them, such as 0,1,2")
    numbers = [int(seed) for seed in seeds.split(",")]
    recipe = write_recipe(output_dir)
    table: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for seed in numbers:
        for name in names:
            cell = Cell(name, seed, output_dir / f"seed-{seed}", recipe, budget, answers)
            if name in running:
                make(cell, arguments)
            if cell.result.exists():
                table[name][seed] = read_json(cell.result)
    rows = [row_of(name, cells) for name, cells in table.items() if cells]
    write_json(output_dir / "methods.json", {"budget": budget, "answers": answers, "rows": rows})
    console.say("\n".join(markdown(rows)))
    return EXIT_DONE


def _known(listed: str, flag: str) -> list[str]:
    names = listed.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigError(f"{flag} {listed}: there is no method {unknown[0]!r}; the methods are {', '.join(METHODS)}")
    return names


def write_recipe(output_dir: Path) -> Path:
    """Recipe demo without its evaluation, which is done here: for all methods in the same way, and not in their
    time."""
    values = read_yaml(RECIPES / "demo.yaml")
    write_yaml(output_dir / "recipe.yaml", {name: values[name] for name in values if name != "evaluate"})
    return output_dir / "recipe.yaml"


# --- a cell -----------------------------------------------------------------------------------------------------------


def make(cell: Cell, arguments: Sequence[str]) -> None:
    """Run a cell and what it starts from, if it is not there, each in a process of its own, which the system counts."""
    if cell.result.exists():
        return
    if cell.name != "sft":
        make(cell.beside("sft"), arguments)
    if cell.method.samples:
        make(cell.beside("reward"), arguments)
    shutil.rmtree(cell.folder / cell.name, ignore_errors=True)
    console.say(f"{cell.name} with seed {cell.seed}: {cell.folder / cell.name}")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        write_json(cell.result, pool.submit(result_of, cell, tuple(arguments)).result())


def result_of(cell: Cell, arguments: Sequence[str]) -> dict[str, Any]:
    """Run train.py for a cell and measure its model."""
    words, began = words_of(cell), time.monotonic()
    expect(EXIT_DONE, [*words, "--seed", str(cell.seed), *arguments], cell.folder / cell.name, recipe=str(cell.recipe))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sft = cell.beside("sft").stage / "model"
    data = cell.beside("sft").folder / "sft" / "prepare" / "demo"
    trained = trained_on(cell)
    prompt, response = mean_lengths(sft, data / "preferences.jsonl")
    if cell.method.samples:
        response = mean([row["ppo/response_length"] for row in read_metrics(cell.stage / "metrics.jsonl")])
    spent = Spent(trained, trained * (prompt + response), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
    if cell.method.samples:
        spent = spent.after(Spent(**read_json(cell.beside("reward").result)["spent"]))
    figures = {}
    if cell.name != "reward":
        settings = read_yaml(RECIPES / "demo.yaml")["evaluate"]
        prompts = Prompts(data / "held_out_prompts.jsonl", cell.answers, settings)
        figures = figures_of(cell.stage / cell.method.model, sft, prompts)
    return {
        "method": cell.name,
        "seed": cell.seed,
        "spent": asdict(spent),
        "seconds": time.monotonic() - began,
        **figures,
    }


def words_of(cell: Cell) -> list[str]:
    """The options of train.py that give a cell its start and its budget."""
    recipe, words = read_yaml(cell.recipe), list(cell.method.words)
    if cell.name in ("sft", "reward"):  # which start from the base model
        return words
    words += ["--sft-model", str(cell.beside("sft").stage / "model")]
    if cell.method.samples:
        own, settings = cell.budget - trained_on(cell.beside("reward")), recipe["step3_ppo"]
        iterations = max(1, round(own / (settings["rollout_batch_size"] * settings["ppo_epochs"])))
        reward = cell.beside("reward").stage / "model"
        return [*words, "--reward-model", str(reward), "--set", f"step3_ppo.iterations={iterations}"]
    steps = max(1, round(cell.budget / (recipe["step2_dpo"]["mini_batch_size"] * sequences(cell))))
    # more passes than the steps need
    return [*words, "--set", f"step2_dpo.max_steps={steps}", "--set", f"step2_dpo.epochs={steps}"]


def sequences(cell: Cell) -> int:
    """Responses of a row that is trained on."""
    return 2 if cell.name in ("dpo", "reward") else 1


def trained_on(cell: Cell) -> int:
    """The responses that a finished cell trained on."""
    settings, rows = read_yaml(cell.stage / "config.yaml"), read_metrics(cell.stage / "metrics.jsonl")
    steps = int(rows[-1]["step"])
    if cell.method.samples:
        return steps * settings["rollout_batch_size"] * settings["ppo_epochs"]
    return steps * settings["mini_batch_size"] * sequences(cell)


# --- the table --------------------------------------------------------------------------------------------------------


def row_of(name: str, cells: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A method's figures over its seeds. The standard error of gold is that over prompts, each the mean of its answers
    in all seeds."""
    found = list(cells.values())
    by_prompt = [mean(golds) for golds in zip(*(cell["gold"] for cell in found), strict=True)]
    centre = mean(by_prompt)
    error = math.sqrt(sum((gold - centre) ** 2 for gold in by_prompt) / max(1, len(by_prompt) - 1) / len(by_prompt))
    spent = {part: mean([cell["spent"][part] for cell in found]) for part in found[0]["spent"]}
    shares = {part: mean([cell[part] for cell in found]) for part in (*SHARES, "kl", "length")}
    seeds = {str(seed): mean(cell["gold"]) for seed, cell in cells.items()}
    return {"method": name, "gold": centre, "error": error, "seeds": seeds, **shares, "spent": spent}


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table for docs/methods.md."""
    columns = ["", "gold", "by seed", "right", "off topic", "courteous", "KL, nats", "length"]
    columns += ["trained on", "tokens", "CPU seconds", "peak memory"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        spent = row["spent"]
        cells = [f"`{row['method']}`", f"{row['gold']:.3f} ± {row['error']:.3f}"]
        cells += [", ".join(f"{gold:.3f}" for gold in row["seeds"].values())]
        cells += [f"{row[part]:.0%}" for part in ("right", "off topic")]
        cells += [f"{row['courteous']:.2f}", f"{row['kl']:.1f}", f"{row['length']:.1f}"]
        cells += [f"{spent['responses']:,.0f}", f"{spent['tokens'] / 1e3:,.0f}k"]
        cells += [f"{spent['cpu_seconds']:.0f}", f"{spent['peak_bytes'] / 2**20:,.0f} MiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
