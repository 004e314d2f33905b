"""How fast the data layer is and how much memory it takes, on generated pairs from three sources, for three stages.

    python -m scripts.bench_data --rows 50000 --rows 200000 --num-proc 2

For each size it shows the seconds and rows per second of a first start (reading, splitting, blending, tokenising for
all stages), the seconds of a second start (all from the cache), and the peak memory of any process, sampled from
outside: all of it, and the part that is not file pages, which the kernel can drop at any time. For comparison it shows
the rows per second of a loop that tokenises one row at a time with the same template.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

WORKER = [sys.executable, __file__, "--worker"]
SHARES = (0.5, 0.3, 0.2)  # of the rows in each source
WEIGHTS = ("5", "3", "2")
LOOP_ROWS = 5000


def vocabulary(size: int = 5000) -> list[str]:
    generator = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstv" for v in "aeiou"]
    return ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(size)]


def text(generator: random.Random, words: list[str], longest: int) -> str:
    return " ".join(generator.choices(words, k=generator.randint(2, longest)))


def write_sources(folder: Path, rows: int) -> list[str]:
    generator, words, paths = random.Random(0), vocabulary(), []
    for number, share in enumerate(SHARES):
        path = folder / f"source{number}.jsonl"
        with path.open("w") as file:
            for _ in range(int(rows * share)):
                lengths = {"prompt": 100, "chosen": 60, "rejected": 60}
                row = {name: text(generator, words, longest) for name, longest in lengths.items()}
                file.write(json.dumps(row) + "\n")
        paths.append(str(path))
    return paths


def write_tokenizer(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    generator, words = random.Random(1), vocabulary()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (text(generator, words, 200) for _ in range(2000)),
        vocab_size=4000,
        special_tokens=["<pad>", "</s>"],
        show_progress=False,
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(
        folder
    )


def work(task: dict[str, Any]) -> dict[str, float]:
    """One start of the three stages' data, in a process of its own; or the loop over single rows."""
    from transformers import AutoTokenizer

    from data import stage_data
    from data.config import DataSettings
    from rlhf.template import Template, install_template

    tokenizer = AutoTokenizer.from_pretrained(task["tokenizer"])
    install_template(tokenizer)
    template = Template(tokenizer)
    began, before = time.monotonic(), sum(os.times()[:4])
    if task["loop"]:
        with open(task["paths"][0]) as file:
            for line, _ in zip(file, range(LOOP_ROWS), strict=False):
                row = json.loads(line)
                template.prompt_ids([{"role": "user", "content": row["prompt"]}])
                template.response_ids(row["chosen"])
                template.response_ids(row["rejected"])
        return {"seconds": time.monotonic() - began, "cpu": sum(os.times()[:4]) - before, "rows": LOOP_ROWS}
    settings = DataSettings(
        data_path=[f"{path}:{weight}" for path, weight in zip(task["paths"], WEIGHTS, strict=True)],
        data_cache_dir=Path(task["cache"]),
        max_response_length=512,
        max_prompt_length=512,
        num_proc=task["num_proc"],
    )
    rows = 0
    for build in (stage_data.demonstrations, stage_data.preferences, stage_data.prompts):
        data = build(settings, template)
        rows += len(data.train) + len(data.held_out)
    return {"seconds": time.monotonic() - began, "cpu": sum(os.times()[:4]) - before, "rows": rows}


def measure(task: dict[str, Any]) -> dict[str, float]:
    """`work(task)` in a child, its memory and that of its own children sampled while it runs."""
    child = subprocess.Popen([*WORKER, json.dumps(task)], stdout=subprocess.PIPE, text=True)
    peak = {"VmRSS": 0, "RssAnon": 0}
    while child.poll() is None:
        for pid in _family(child.pid):
            for name, value in _memory(pid).items():
                peak[name] = max(peak[name], value)
        time.sleep(0.05)
    assert child.stdout
    last = child.stdout.read().strip().splitlines()[-1]
    if child.returncode:
        raise SystemExit(f"the worker failed: {last}")
    return {**json.loads(last), "rss": peak["VmRSS"] * 1024, "anon": peak["RssAnon"] * 1024}


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def _memory(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {k: int(v.split()[0]) for k, _, v in (line.partition(":") for line in lines) if k in ("VmRSS", "RssAnon")}


@click.command("python -m scripts.bench_data")
@click.option(
    "--rows", type=int, multiple=True, default=(50_000, 200_000), show_default=True, help="number of pairs; repeatable"
)
@click.option("--num-proc", type=int, default=2, show_default=True, help="number of processes that tokenise")
@click.option("--worker", hidden=True)
def main(rows: tuple[int, ...], num_proc: int, worker: str | None) -> None:
    """Measure time and memory of the data layer on generated pairs."""
    if worker:
        print(json.dumps(work(json.loads(worker))))
        return
    from rlhf.console import table

    lines: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        for count in rows:
            task = {
                "paths": write_sources(folder, count),
                "tokenizer": str(folder / "tokenizer"),
                "cache": str(folder / f"cache{count}"),
                "num_proc": num_proc,
                "loop": False,
            }
            for start in ("first", "second"):
                figures = measure(task)
                lines.append([f"{count:,} pairs, {start} start", *_cells(figures)])
        lines.append([f"one row at a time ({LOOP_ROWS:,})", *_cells(measure({**task, "loop": True}))])
    columns = ["", "seconds", "of CPU", "rows per second", "per CPU second", "peak MB", "without file pages"]
    table(f"Data layer, {num_proc} processes; peak memory of any one of them", columns, lines)


def _cells(figures: dict[str, float]) -> list[Any]:
    speeds = [round(figures["rows"] / figures[name]) for name in ("seconds", "cpu")]
    memory = [round(figures[name] / 1e6) for name in ("rss", "anon")]
    return [round(figures["seconds"], 1), round(figures["cpu"], 1), *speeds, *memory]


if __name__ == "__main__":
    main()
