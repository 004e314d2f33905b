"""An iteration of stage 3 against TRL's trainers, in turns: PPOTrainer (1.12.0, the last that has it), RLOO and GRPO.

    python -m venv trl && trl/bin/pip install trl==1.12.0
    python -m scripts.bench_ppo --output bench/ --trl-python trl/bin/python [--rounds 3] [--threads 1]
    trl/bin/pip install trl==1.16.0         # without a critic, four responses to a prompt
    python -m scripts.bench_ppo --output bench/ --trl-python trl/bin/python \\
        --ours "ours rloo bf16,ours grpo bf16,ours bf16" --peers "TRL rloo bf16,TRL grpo bf16"
    python -m scripts.bench_ppo --output bench/ --ranks 2 --only 58M      # two ranks against one, by the clock
    python -m scripts.bench_ppo --output bench/ --real-model FOLDER --only FOLDER

All contenders have the same model, prompts, lengths, batch and epochs: one epoch, and one optimiser step of actor and
critic in an iteration. TRL always generates to the full length and cuts afterwards, so the lengths do not change the
cost of its iteration. All contenders are in memory at once; `--peers "TRL bf16"` and `--ours` name fewer of them. Other
variants are "ours reuse bf16" (`reuse_forward`), "ours compiled bf16" (`compile`), "ours compiled reuse bf16" (both),
and "TRL compiled bf16".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

OURS = ("ours bf16", "ours fp32")
PEERS = ("TRL bf16", "TRL fp32", "TRL autocast bf16")
WORKERS = str(Path(__file__).with_name("bench_ppo_workers.py"))


def save_models(setting: Any, folder: Path) -> None:
    """Write the folders of an actor and a reward model with random weights and a small tokenizer of bytes."""
    import torch
    import transformers

    from scripts.bench_common import build_config, build_model, byte_tokenizer

    build_model(setting.model, "fp32").save_pretrained(folder / "actor")
    config = build_config(setting.model)
    config.num_labels = 1
    torch.manual_seed(1)
    reward: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    reward.config.score_mean, reward.config.score_std = 0.0, 1.0
    reward.save_pretrained(folder / "reward")
    for name in ("actor", "reward"):
        byte_tokenizer().save_pretrained(folder / name)


def flops(setting: Any, tokens: float, *, reuses: bool = False, critic: bool = True) -> dict[str, float]:
    """Useful operations of an iteration: generation; scoring (actor, critic, reference, reward model forward); training
    (actor and critic: forward, unless it `reuses` that of scoring, and backward, which is twice that). It counts linear
    layers and attention, and heads at response tokens only. Without a `critic` it counts none."""
    from scripts.bench_common import build_config
    from scripts.bench_generation import flops as generation_flops

    c = build_config(setting.model)
    hidden, layers = c.hidden_size, c.num_hidden_layers
    size = getattr(c, "head_dim", None) or hidden // c.num_attention_heads
    attention = 2 * hidden * size * (c.num_attention_heads + c.num_key_value_heads)
    block = layers * (attention + 3 * hidden * c.intermediate_size)
    length = setting.prompt + tokens / setting.batch
    mixing = 4 * layers * c.num_attention_heads * size * length * length / 2 * setting.batch
    body = 2 * block * length * setting.batch + mixing
    head = 2 * hidden * c.vocab_size * tokens
    return {
        "generate": generation_flops(setting, tokens),
        "score": (3 + critic) * body + 2 * head,
        "train": (2 if reuses else 3) * ((1 + critic) * body + head),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=lambda text: Path(text).expanduser(), default=Path("bench/ppo"), help="folder of the results"
    )
    parser.add_argument("--trl-python", help="Python of an environment with TRL 1.12.0; default: no TRL")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one of warming up")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument(
        "--micro-batch-size", type=int, default=4, help="micro_batch_size of ours; TRL takes the whole batch"
    )
    suits = "those below that suit this CPU"
    parser.add_argument("--ours", help=f"variants of ours, with commas between them; default: {suits}")
    parser.add_argument("--peers", help=f"variants of TRL, with commas between them; default: {suits}")
    parser.add_argument("--ranks", type=int, default=1, help="number of ranks of one more run of ours, at full length")
    parser.add_argument("--real-model", help="folder of a real model: 16 rows, 64 + 64 tokens")
    parser.add_argument("--only", help="part of a model's name: other models are left out")
    options = parser.parse_args()
    from scripts.bench_common import (
        Setting,
        Worker,
        describe,
        gemm_peaks,
        in_turns,
        picture,
        served_here,
        show_peaks,
        write_results,
    )
    from step3_ppo.estimators import ESTIMATORS

    ours = tuple(options.ours.split(",")) if options.ours else served_here(OURS)
    peers = () if not options.trl_python else tuple(options.peers.split(",")) if options.peers else served_here(PEERS)

    results: dict[str, Any] = {"threads": options.threads, "settings": []}
    bars: dict[str, list[tuple[str, float]]] = {}
    for model, length in (("7.3M", 64), ("58M", 128), (options.real_model, 64)):
        if not model or (options.only and options.only not in model):
            continue
        with tempfile.TemporaryDirectory(prefix="bench-ppo-") as folder:
            full = Setting(model, 16, length, length, False)
            save_models(full, Path(folder))
            peaks = gemm_peaks([*ours, *peers], options.threads)
            show_peaks(f"{model} 16×({length}+{length})", peaks)
            shared = {
                "threads": options.threads,
                "folder": folder,
                "micro_batch_size": options.micro_batch_size,
            }
            workers, lengths = [], []
            for ends in (False, True):
                for variant in ours:
                    setting = Setting(model, 16, length, length, ends)
                    arguments = {**shared, "setting": vars(setting), "variant": variant}
                    workers.append(Worker(WORKERS, arguments, threads=options.threads))
                    lengths.append(setting)
            for variant in ours if options.ranks > 1 else ():
                label = f"{variant.replace('ours', f'ours on {options.ranks} ranks')}"
                arguments = {**shared, "setting": vars(full), "variant": label, "ranks": options.ranks}
                workers.append(Worker(WORKERS, arguments, threads=options.threads))
                lengths.append(full)
            for variant in peers:
                arguments = {**shared, "setting": vars(full), "variant": variant}
                workers.append(Worker(WORKERS, arguments, threads=options.threads, python=options.trl_python))
                lengths.append(full)
            found = in_turns(workers, options.rounds)
        for one, setting in zip(found, lengths, strict=True):
            one["setting"] = describe(setting)
            ranks = options.ranks if f"on {options.ranks} ranks" in one["variant"] else 1
            words = one["variant"].split()
            counted = flops(setting, one["tokens"], reuses="reuse" in words, critic=not ESTIMATORS.keys() & set(words))
            work = {part: value / ranks for part, value in counted.items()}
            one["share_of_gemm_peak"] = sum(work.values()) / one["cpu_seconds"] / peaks[one["variant"].split()[-1]]
            if "train_cpu_seconds" in one:
                one["share_of_gemm_peak_training"] = (
                    work["train"] / one["train_cpu_seconds"] / peaks[one["variant"].split()[-1]]
                )
        results["settings"].append({"model": model, "gemm_peak": peaks, "contenders": found})
        print()
        rivals = [one for one in found if one["variant"].startswith("TRL")]
        best = min(rivals, key=lambda one: one["cpu_seconds"]) if rivals else None
        for one, setting in zip(found, lengths, strict=True):
            label = one["variant"] + (", ends at 40%" if setting.ends else "")
            bars.setdefault(f"{model} 16×({length}+{length})", []).append((label, one["cpu_seconds"]))
            text = (
                f"  {label:26} {one['cpu_seconds']:7.2f} CPU-s {one['wall_seconds']:7.2f} s "
                f"{one['share_of_gemm_peak']:4.0%} of peak {one['peak_bytes'] / 2**20:6.0f} MiB"
            )
            if "train_cpu_seconds" in one:
                text += (
                    f"  generate {one['generate_cpu_seconds']:.2f} score {one['score_cpu_seconds']:.2f} "
                    f"train {one['train_cpu_seconds']:.2f} ({one['share_of_gemm_peak_training']:.0%} of peak) "
                    f"flip {one['flip_seconds']:.3f}"
                )
                if best and "ranks" not in label:  # of several ranks only the first's CPU time is known
                    # if lengths differ between rounds, the fastest round is the one with the shortest
                    ours = one["mean_cpu_seconds" if setting.ends else "cpu_seconds"]
                    text += f"  {best['cpu_seconds'] / ours:.2f}× {best['variant']}"
            print(text, flush=True)
        alone = {one["variant"]: one for one, setting in zip(found, lengths, strict=True) if not setting.ends}
        for variant in ours if options.ranks > 1 else ():
            together = alone[variant.replace("ours", f"ours on {options.ranks} ranks")]
            ratio = alone[variant]["wall_seconds"] / together["wall_seconds"]
            print(f"  {variant}: {options.ranks} ranks are {ratio:.2f}× as fast as one, by the clock")
        write_results(options.output, results)
    picture(options.output / "ppo.svg", f"One PPO iteration, {options.threads} thread(s)", bars, "CPU-s")
    print(f"\nwritten: {options.output}/results.json, ppo.svg")


if __name__ == "__main__":
    sys.exit(main())
