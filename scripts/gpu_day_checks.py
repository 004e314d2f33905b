"""The checks of `gpu_day`, each in a process of its own. They say what the terminal shows too by lines with a bar."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.metrics import FILE_NAME, read_metrics
from scripts.gpu_models import llama, opt, random_model, small, write_model, write_pairs
from scripts.method_stages import METHODS, packages_of
from scripts.nightly_kill import train

SHORT = ["--max-prompt-length", "40", "--max-response-length", "16", "--micro-batch-size", "2", "--num-gpus", "1"]
READ_BYTES_PER_SECOND = 3.0e12  # of an H100's memory
GB = 1e9


def say(text: str) -> None:
    """A line that the terminal shows, too."""
    print(f"| {text}", flush=True)


# --- checks ----------------------------------------------------------------------------------------------------------


def run_train(words: list[str], output: Path) -> None:
    """train.py, which must come to its end; `--all X` stands for `--set STAGE.X` of every stage of the method."""
    stages = packages_of(words[words.index("--method") + 1] if "--method" in words else METHODS[0])
    batches = ["step3_ppo.rollout_batch_size=8"] if "step3_ppo" in stages else []
    batches += [f"{stage}.mini_batch_size=4" for stage in stages]
    flags = ["--force", *(word for each in batches for word in ("--set", each))]
    for before, word in zip(["", *words], words, strict=False):
        if before == "--all":
            flags += [flag for stage in stages for flag in ("--set", f"{stage}.{word}")]
        elif word != "--all":
            flags.append(word)
    code, said = train([*flags, *SHORT], output)
    print(said)
    if code:
        raise SystemExit(f"train.py ended with {code}: {said.strip().splitlines()[-1]}")


def smoke(folder: Path, family: str, flags: list[str], steps: int) -> None:
    """The stages of a method by the command line."""
    base, pairs = write_model(folder / "base", small(family)), write_pairs(folder)
    words = ["--actor-model", base, "--data-path", pairs, "--max-steps", str(steps), *flags]
    run_train(words, folder / "out")
    stage = next(stage for stage in ("step3_ppo", "step2_dpo") if (folder / "out" / stage).exists())
    last = read_metrics(folder / "out" / stage / FILE_NAME)[-1]
    shown = ("ppo/kl", "ppo/sampler_mismatch", "ppo/entropy", "dpo/loss", "dpo/margin", "dpo/kl")
    figures = {name: round(last[name], 4) for name in shown if name in last}
    bad = [name for name, value in last.items() if isinstance(value, float) and value != value]
    skipped = sum(value for name, value in last.items() if name.endswith("/skipped_steps"))
    say(f"{figures}; skipped {skipped:.0f}; not a number: {bad or 'none'}")


def resume(folder: Path, zero_stage: str, dtype: str) -> None:
    """Three steps; then the last two again from the checkpoint of the first. Both give the same perplexity."""
    base, pairs = write_model(folder / "base", small("llama")), write_pairs(folder)
    words = ["--stages", "1", "--actor-model", base, "--data-path", pairs, "--max-steps", "3", "--dtype", dtype]
    words += [
        "--actor-zero-stage",
        zero_stage,
        "--set",
        "step1_sft.save_every=1",
        "--set",
        "step1_sft.keep_checkpoints=9",
    ]
    perplexities, stage = [], folder / "out" / "step1_sft"
    for _ in range(2):
        run_train(words, folder / "out")
        perplexities.append(read_metrics(stage / FILE_NAME)[-1]["sft/perplexity"])
        for name in ("checkpoints/step-00000002", "checkpoints/step-00000003", "model"):
            shutil.rmtree(stage / name, ignore_errors=True)
        (stage / "done.json").unlink()
    first, second = perplexities
    verdict = "good" if abs(first - second) <= 1e-3 * first else "BAD: a resumed run is another run"
    say(f"ZeRO-{zero_stage} {dtype}: perplexity {first:.5f}, resumed {second:.5f}: {verdict}")


def budget(folder: Path) -> None:
    """What the cache may take, before and after the allocator has kept blocks that are free."""
    import torch

    from rlhf.training import distributed
    from step3_ppo.hybrid.engine import cache_budget

    distributed.init(0)
    before = cache_budget()
    if torch.cuda.is_available():
        blocks = [torch.empty(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(before // (1 << 28))]
        del blocks
    after = cache_budget()
    verdict = "good" if after >= 0.9 * before else "BAD: freed blocks count as used"
    say(f"{before / GB:.2f} GB, after as much was used and freed {after / GB:.2f} GB: {verdict}")


def ppo(folder: Path, changes: dict[str, Any], tiny: bool) -> None:
    """Three iterations as recipe opt-1.3b does them: seconds and bytes of each phase beside the plan's, and the
    cache's room."""
    from scripts.gpu_memory import Stage3, planned
    from step3_ppo.config import PPOConfig

    rows, at_once, length, prompt = (8, 4, 8, 5) if tiny else (256, 64, 256, 192)
    actor, critic = (
        (opt(64, 2, 4, 320), opt(64, 2, 4, 320)) if tiny else (opt(2048, 24, 32, 50272), opt(1024, 24, 16, 50272))
    )
    values = {
        "actor_model": write_model(folder / "actor", actor),
        "reward_model": write_model(folder / "reward", critic, scalar=True),
        "rollout_batch_size": rows, "mini_batch_size": rows // 2, "micro_batch_size": 2 if tiny else 8,
        "rollout_micro_batch_size": at_once, "max_prompt_length": 256, "max_response_length": length,
        "output_dir": folder / "out",
    }  # fmt: skip
    config = PPOConfig(**{**values, **changes})
    stage = Stage3(config, prompt=prompt)
    expected = planned(config)
    for number in range(3):
        marks = stage.iterate(number)
        room = stage.roles.actor.hybrid._sampler._cache_bytes or 0
        token = 1e3 * marks["rollout"].seconds / (length * (rows // at_once))
        say(
            f"{changes or 'as the recipe'}, iteration {number}: {sum(mark.seconds for mark in marks.values()):.2f} s, "
            f"{token:.1f} ms a token; room for the cache {room / GB:.2f} GB"
        )
        for name, mark in marks.items():
            say(
                f"  {name}: {mark.seconds:.2f} s, {mark.held / GB:.2f} GB held, {mark.peak / GB:.2f} at most, "
                f"{expected[name] / GB:.2f} planned"
            )


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _freed_by(drop: Callable[[], None]) -> int:
    """Bytes that a GPU has more of when something is gone, with what the driver took for it."""
    import torch

    _now()
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    drop()
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info()
    return after - before


def memory(folder: Path, name: str) -> None:
    """The plan's bytes of a cell of `scripts.gpu_memory` beside those of the GPU."""
    import torch

    from scripts.gpu_memory import CELLS, largest, measured, rows_of

    if not torch.cuda.is_available():
        say("there is no GPU that counts bytes")
        return
    (cell,) = (cell for cell in CELLS if cell.name == name)
    phases = measured(folder, cell.size, cell.settings)
    plan, real = largest(phases)
    row = ", ".join(f"{value:.1f} MB" if isinstance(value, float) else value for value in rows_of({name: phases})[0])
    say(f"{row}: {'good' if abs(plan - real) <= 0.05 * real else 'BAD: the plan is more than 5% off'}")


def decode(folder: Path, tiny: bool) -> None:
    """Decoding of a random Llama of 8B: ms a token beside the time that reading its weights takes, plain, compiled and
    by CUDA graphs, with what these take of memory; a profile."""
    import torch

    from rlhf.generation.drawing import Sampling
    from rlhf.generation.sampler import Sampler

    model = random_model(llama(64, 128, 2, 4, 2, 320) if tiny else llama(4096, 14336, 32, 32, 8, 128256))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    count, length, rows = (8, 16, 4) if tiny else (128, 256, 64)
    prompts = [[3 + row] * length for row in range(rows)]
    ways = {"plain": {}, "compiled": {"compiled": True}, "graphs": {"graphs": True}}
    skipped = {"compiled"} if tiny else set()
    skipped |= set() if torch.cuda.is_available() else {"graphs"}
    drawn = {}
    for how in (how for how in ways if how not in skipped):
        sampler = Sampler(model, pad_token_id=0, **ways[how])
        for round_ in range(2):
            began = _now()
            drawn[how] = sampler.generate(prompts, Sampling(count, min_new_tokens=count, stop_token_ids=(2,)))
            took = 1e3 * (_now() - began) / count
            floor = 1e3 * size / READ_BYTES_PER_SECOND
            say(f"{how}, round {round_}: {took:.2f} ms a token; weights alone {floor:.2f}")
        if sampler.graphs is not None:
            alike = float((drawn[how].ids_BR == drawn["plain"].ids_BR).float().mean())
            verdict = "BAD: given up, see the log" if sampler.graphs.failed else "good"
            made, taken = len(sampler.graphs), _freed_by(sampler.graphs.drop)
            say(f"{made} graphs, {taken / GB:.2f} GB; {alike:.0%} of the tokens as without: {verdict}")
        sampler.release()
    if torch.cuda.is_available() and not tiny:
        from torch.profiler import ProfilerActivity, profile

        sampler = Sampler(model, pad_token_id=0)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            sampler.generate(prompts, Sampling(8, min_new_tokens=8, stop_token_ids=(2,)))
        print(found.key_averages().table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=60))


CHECKS: dict[str, Any] = {
    "budget": budget, "resume": resume, "smoke": smoke, "memory": memory, "ppo": ppo, "decode": decode
}  # fmt: skip
