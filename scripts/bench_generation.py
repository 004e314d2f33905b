"""Generation against transformers' `generate`, in turns: same model, prompts and lengths.

    python -m scripts.bench_generation --output bench/ [--real-model FOLDER] [--rounds 3] [--threads 1]

Responses are sampled at temperature 1. With "ends at 40%" their lengths come from a table of random lengths whose mean
is 40% of the maximum; all contenders have the same lengths in a round.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from scripts.bench_common import (
    STOP,
    Setting,
    Worker,
    build_model,
    claim_stdout,
    describe,
    force_lengths,
    gemm_peaks,
    in_turns,
    lengths_of,
    picture,
    prompts_of,
    serve,
    served_here,
    show_peaks,
    write_results,
)

OURS = ("ours bf16", "ours fp32")
PEERS = ("HF dynamic bf16", "HF dynamic fp32", "HF static bf16", "HF static fp32")


def worker(arguments: dict[str, Any]) -> None:
    import torch
    import transformers

    answers = claim_stdout()
    torch.set_num_threads(int(arguments["threads"]))
    setting, variant = Setting(**arguments["setting"]), arguments["variant"]
    dtype = variant.split()[-1]
    model = build_model(setting.model, dtype)
    vocabulary = model.config.vocab_size
    prompts = prompts_of(setting, vocabulary)
    if variant.startswith("ours"):
        from rlhf.generation.drawing import Sampling
        from rlhf.generation.sampler import Sampler
        from rlhf.training import cpu
        from step3_ppo.hybrid.inference_copy import InferenceCopy

        cpu.tune()  # as a stage does
        copy = InferenceCopy(model, dtype=next(model.parameters()).dtype, device=torch.device("cpu"), group=None)
        copy.refresh()
        del model
        sampler = Sampler(copy.lm, pad_token_id=0)
        sampling = Sampling(setting.response, stop_token_ids=(STOP,))
        take = force_lengths(sampler)

        def once(index: int) -> dict[str, float]:
            take(lengths_of(setting, index))
            return {"tokens": float(sampler.generate(prompts, sampling, iteration=index).mask_BR.sum())}

    else:
        ids = torch.tensor(prompts)
        model.generation_config.eos_token_id = STOP

        class Ends(transformers.LogitsProcessor):
            def __init__(self, index: int) -> None:
                self.lengths_B = torch.tensor(lengths_of(setting, index))

            def __call__(self, input_ids: Any, scores: Any) -> Any:
                ends_B = self.lengths_B == input_ids.shape[1] - setting.prompt + 1
                scores[:, STOP] = float("-inf")
                if ends_B.any():
                    scores[ends_B] = float("-inf")
                    scores[ends_B, STOP] = 0.0
                return scores

        options: dict[str, Any] = (
            {"cache_implementation": "static", "disable_compile": True} if "static" in variant else {}
        )

        def once(index: int) -> dict[str, float]:
            torch.manual_seed(index)
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=setting.response,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                logits_processor=transformers.LogitsProcessorList([Ends(index)]),
                **options,
            )[:, setting.prompt :]
            hit = out == STOP
            return {"tokens": float((hit.int().cumsum(1) - hit.int() == 0).sum())}

    serve(once, answers)


def flops(setting: Setting, tokens: float) -> float:
    """Useful operations of a run: two per weight and token in linear layers; attention over earlier tokens."""
    from scripts.bench_common import build_config

    c = build_config(setting.model)
    hidden, layers = c.hidden_size, c.num_hidden_layers
    size = getattr(c, "head_dim", None) or hidden // c.num_attention_heads
    attention = 2 * hidden * size * (c.num_attention_heads + c.num_key_value_heads)
    block = layers * (attention + 3 * hidden * c.intermediate_size)
    read = setting.batch * setting.prompt
    linear = 2 * block * (read + tokens) + 2 * hidden * c.vocab_size * (tokens + setting.batch)
    context = setting.prompt + tokens / setting.batch / 2
    return linear + 4 * layers * c.num_attention_heads * size * (tokens * context + read * setting.prompt / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output",
        type=lambda text: Path(text).expanduser(),
        default=Path("bench/generation"),
        help="folder of the results",
    )
    parser.add_argument("--real-model", help="folder of a real model: 16 rows, 64 + 64 tokens")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one of warming up")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--only", help="part of a model's name: other models are left out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    ours, peers = served_here(OURS), served_here(PEERS)
    settings = [
        Setting(model, 16, length, length, ends)
        for model, length in (("7.3M", 64), ("58M", 128), (options.real_model, 64))
        if model and (not options.only or options.only in model)
        for ends in (False, True)
    ]
    results: dict[str, Any] = {"threads": options.threads, "settings": []}
    bars = {}
    for setting in settings:
        peaks = gemm_peaks([*ours, *peers], options.threads)
        show_peaks(setting.name, peaks)
        arguments = {"setting": vars(setting), "threads": options.threads}
        workers = [
            Worker(__file__, {**arguments, "variant": variant}, threads=options.threads) for variant in (*ours, *peers)
        ]
        found = in_turns(workers, options.rounds)
        for one in found:
            one["tokens_per_cpu_second"] = one["tokens"] / one["cpu_seconds"]
            one["mean_length"] = one["mean_tokens"] / setting.batch
            dtype = one["variant"].split()[-1]
            one["share_of_gemm_peak"] = (
                flops(setting, one["tokens"]) / one["cpu_seconds"] * options.threads / (peaks[dtype] * options.threads)
            )
        best = {
            side: min((f for f in found if f["variant"] in names), key=lambda f: f["cpu_seconds"])
            for side, names in (("ours", ours), ("peer", peers))
        }
        # if lengths differ between rounds, the fastest round has the shortest ones, so means are compared
        measure = "mean_cpu_seconds" if setting.ends else "cpu_seconds"
        ratio = best["peer"][measure] / best["ours"][measure]
        results["settings"].append(
            describe(setting) | {"gemm_peak": peaks, "contenders": found, "ratio_of_fastest": ratio}
        )
        bars[setting.name] = [(one["variant"], one["cpu_seconds"]) for one in found]
        print()
        for one in found:
            print(
                f"  {one['variant']:16} {one['cpu_seconds']:7.3f} CPU-s {one['wall_seconds']:7.3f} s "
                f"{one['tokens_per_cpu_second']:7.0f} tokens/CPU-s  mean length {one['mean_length']:5.1f}  "
                f"{one['share_of_gemm_peak']:4.0%} of peak  {one['peak_bytes'] / 2**20:6.0f} MiB"
            )
        print(f"  {best['ours']['variant']} is {ratio:.2f}× as fast as {best['peer']['variant']}", flush=True)
        write_results(options.output, results)
    picture(options.output / "generation.svg", f"Generation, {options.threads} thread(s)", bars, "CPU-s")
    print(f"\nwritten: {options.output}/results.json, generation.svg")


if __name__ == "__main__":
    sys.exit(main())
