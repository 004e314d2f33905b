"""What the benchmarks share: workers that run in turns, models, lengths, the machine's matrix peak, JSON and a picture.

Each contender is a process of its own, so its peak memory is its own and no cache of kernels is shared. The driver asks
them in turns, so other load on the machine slows all of them equally; the fastest round of each counts. Imports torch
only inside functions.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

MODELS = {
    # name: hidden, layers, vocabulary, inner size, heads, key heads, whether the embeddings are tied
    "7.3M": (256, 4, 8192, 688, 4, 4, False),
    "58M": (512, 8, 32000, 1376, 8, 8, False),
    "135M": (576, 30, 49152, 1536, 9, 3, True),  # the shape of SmolLM2-135M
}
PAD, STOP, FIRST_CONTENT = 0, 2, 3


@dataclass
class Setting:
    """One comparison: a model (a name of MODELS or a folder), batch, prompt and response lengths, and whether responses
    end early, at 40% of the maximum on average."""

    model: str
    batch: int
    prompt: int
    response: int
    ends: bool

    @property
    def name(self) -> str:
        return (
            f"{Path(self.model).name} {self.batch}×({self.prompt}+{self.response}){' ends at 40%' if self.ends else ''}"
        )


def build_config(name: str) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    if name not in MODELS:
        return transformers.AutoConfig.from_pretrained(name)
    hidden, layers, vocabulary, inner, heads, key_heads, tied = MODELS[name]
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
    )


def build_model(name: str, dtype: str) -> Any:
    import torch
    import transformers

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.manual_seed(0)
    if name in MODELS:
        model = transformers.AutoModelForCausalLM.from_config(build_config(name)).to(kind)
    else:
        transformers.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=kind)
    return model.eval()


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are bytes; pad, bos and eos are ids 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def prompts_of(setting: Setting, vocabulary: int) -> list[list[int]]:
    import random

    draw = random.Random(0)
    return [[draw.randrange(FIRST_CONTENT, vocabulary) for _ in range(setting.prompt)] for _ in range(setting.batch)]


def lengths_of(setting: Setting, index: int) -> list[int]:
    """The lengths of round `index`, the same for every contender: all are the maximum R, or each token is the last one
    with probability h, where h makes the mean length (1 − (1 − h)^R) / h equal to 0.4 R."""
    import math
    import random

    if not setting.ends:
        return [setting.response] * setting.batch
    low, high, target = 1e-4, 0.5, 0.4 * setting.response
    for _ in range(60):
        h = (low + high) / 2
        low, high = (h, high) if (1 - (1 - h) ** setting.response) / h > target else (low, h)
    draw = random.Random(index)
    drawn = [1 + int(math.log(1 - draw.random()) / math.log(1 - low)) for _ in range(setting.batch)]
    return [min(length, setting.response) for length in drawn]


def force_lengths(sampler: Any) -> Callable[[list[int]], None]:
    """Make our sampler end each row at a given length: it draws the stop token there and nowhere else. Returns the
    function that takes the lengths of the next rows."""
    import torch

    lengths_B, batch, position = torch.zeros(0), None, 0
    prefill = sampler._prefill

    def begin(*arguments: Any) -> Any:
        nonlocal batch, position
        batch, position = prefill(*arguments), 0
        return batch

    def agree(drawn_3B: Any) -> Any:
        nonlocal position
        position += 1
        ends_B = lengths_B[batch.row_B] == position  # type: ignore[union-attr]
        tokens_B = drawn_3B[0].where(drawn_3B[0] != STOP, FIRST_CONTENT)
        return torch.stack([tokens_B.masked_fill(ends_B, STOP), drawn_3B[1], ends_B.double()])

    def take(lengths: list[int]) -> None:
        nonlocal lengths_B
        lengths_B = torch.tensor(lengths)

    sampler._prefill, sampler.agree = begin, agree
    return take


# --- workers ---------------------------------------------------------------------------------------------------------


def claim_stdout() -> TextIO:
    """The stream of answers to the driver; from now on everything else that is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(round_of: Callable[[int], dict[str, float]], answers: TextIO) -> None:
    """The loop of a worker: for each line on stdin, run one round and answer with its figures."""
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        index = int(line)
        cpu, wall = time.process_time(), time.monotonic()
        figures = round_of(index)
        figures |= {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.monotonic() - wall}
        figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(figures), file=answers, flush=True)


class Worker:
    """A contender in its own process; `python` may be another environment's."""

    def __init__(self, script: str, arguments: dict[str, Any], *, threads: int, python: str = sys.executable) -> None:
        self.label = arguments["variant"]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        }
        self.rounds: list[dict[str, float]] = []
        self.command, self.environment = [python, script, "--worker", json.dumps(arguments)], environment

    def start(self) -> None:
        """Start the process and wait until it has built its models."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_DEBUG") else None,
            text=True,
            env=self.environment,
        )
        self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label}: the worker ended (run with BENCH_DEBUG=1 to see why)")
        return json.loads(line)

    def run(self, index: int) -> None:
        assert self.process.stdin is not None
        print(index, file=self.process.stdin, flush=True)
        self.rounds.append(self.answer())

    def close(self) -> dict[str, Any]:
        """End the process. Returns the fastest round by CPU time, and the means and the median of all rounds."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        rounds = self.rounds[1:] or self.rounds  # the first warms up
        best = min(rounds, key=lambda r: r["cpu_seconds"])
        return {
            "variant": self.label,
            **best,
            "mean_cpu_seconds": statistics.mean(r["cpu_seconds"] for r in rounds),
            "mean_tokens": statistics.mean(r["tokens"] for r in rounds),
            "median_cpu_seconds": statistics.median(r["cpu_seconds"] for r in rounds),
            "peak_bytes": max(r["peak_bytes"] for r in self.rounds),
            "rounds": len(rounds),
        }


def in_turns(workers: Sequence[Worker], rounds: int) -> list[dict[str, Any]]:
    """Run one round of warming up and `rounds` that count; the workers take turns. Each measurement is printed."""
    for worker in workers:
        print(f"  {worker.label}: building its models", flush=True)
        worker.start()
    for index in range(rounds + 1):
        for worker in workers:
            worker.run(index)
            found, number = worker.rounds[-1], f"round {index} of {rounds}" if index else "warming up"
            print(
                f"  {number}: {worker.label:26} {found['cpu_seconds']:7.2f} CPU-s {found['wall_seconds']:7.2f} s",
                flush=True,
            )
    return [worker.close() for worker in workers]


def served_here(variants: Sequence[str]) -> tuple[str, ...]:
    """The variants that suit this CPU: where it does not multiply in bf16, those in bf16 (forty times as slow) are left
    out, and that is said."""
    from rlhf.training.distributed import computes_in_bf16

    if computes_in_bf16():
        return tuple(variants)
    print("this CPU does not multiply in bf16: variants in bf16 are left out", flush=True)
    return tuple(variant for variant in variants if "bf16" not in variant)


def gemm_peaks(variants: Iterable[str], threads: int) -> dict[str, float]:
    """`gemm_peak` of each dtype that the variants name last."""
    return {dtype: gemm_peak(dtype, threads) for dtype in sorted({variant.split()[-1] for variant in variants})}


def show_peaks(title: str, peaks: Mapping[str, float]) -> None:
    shown = ", ".join(f"{dtype} {peak / 1e9:.0f}" for dtype, peak in peaks.items())
    print(f"\n{title}: matrix peak {shown} GFLOP/s", flush=True)


def gemm_peak(dtype: str, threads: int) -> float:
    """Floating-point operations per second of a large matrix product on this machine now: the best of several sizes."""
    import torch

    torch.set_num_threads(threads)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
        times = []
        for _ in range(8):
            began = time.process_time()
            torch.mm(a, b)
            times.append((time.process_time() - began) / threads)
        best = max(best, 2 * size**3 / min(times[1:]))
    return best


def write_results(output: Path, results: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def picture(path: Path, title: str, groups: dict[str, list[tuple[str, float]]], unit: str) -> None:
    """Horizontal bars as an SVG, one group per setting; needs no library."""
    bar, gap, left, width = 20, 14, 250, 560
    rows = [(group, label, value) for group, bars in groups.items() for label, value in bars]
    height = 50 + len(rows) * (bar + 4) + len(groups) * (gap + 18)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 120}" height="{height}" '
        'font-family="sans-serif">',
        f'<text x="10" y="24" font-size="16">{_escaped(title)}</text>',
    ]
    y = 40
    for group, bars in groups.items():
        largest = max(value for _, value in bars)
        y += gap + 14
        parts.append(f'<text x="10" y="{y}" font-size="13" font-weight="bold">{_escaped(group)}</text>')
        y += 6
        for label, value in bars:
            colour = "#2a6f97" if label.startswith("ours") else "#b8b8b8"
            length = width * value / largest
            parts.append(f'<text x="{left - 8}" y="{y + 15}" font-size="12" text-anchor="end">{_escaped(label)}</text>')
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar}" fill="{colour}"/>')
            text = f"{value:.3g} {unit}"
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 15}" font-size="12">{_escaped(text)}</text>')
            y += bar + 4
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def describe(setting: Setting) -> dict[str, Any]:
    return asdict(setting) | {"name": setting.name}
