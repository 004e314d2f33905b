"""A PPO iteration of stage 3 against TRL's PPOTrainer (1.12.0, the last that has PPO), in turns.

    python -m venv trl && trl/bin/pip install trl==1.12.0
    python -m scripts.bench_ppo --output bench/ --trl-python trl/bin/python [--rounds 3] [--threads 1]
    python -m scripts.bench_ppo --output bench/ --ranks 2 --only 58M      # two ranks against one, by the clock
    python -m scripts.bench_ppo --output bench/ --real-model FOLDER --only FOLDER

Same model, prompts, lengths, batch and epochs: one epoch, one optimiser step of actor and critic an iteration. TRL
always generates to the full length and cuts afterwards, so its iteration costs the same whatever the lengths.
All contenders are alive at once: `--peers "TRL bf16"` and `--ours` name fewer where memory is short.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS = ("ours bf16", "ours fp32")
PEERS = ("TRL bf16", "TRL fp32", "TRL autocast bf16")


def save_models(setting: Any, folder: Path) -> None:
    """Actor and reward model folders of a random model, with a small tokenizer of bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from scripts.bench_common import build_config, build_model

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    build_model(setting.model, "fp32").save_pretrained(folder / "actor")
    config = build_config(setting.model)
    config.num_labels = 1
    torch.manual_seed(1)
    reward: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    reward.config.score_mean, reward.config.score_std = 0.0, 1.0
    reward.save_pretrained(folder / "reward")
    for name in ("actor", "reward"):
        fast.save_pretrained(folder / name)


def ours(arguments: dict[str, Any], folder: Path) -> Callable[[int], dict[str, float]]:
    """An iteration by the functions that stage 3's main loop calls."""
    import torch

    from rlhf import distributed
    from rlhf.generation import Sampling
    from scripts.bench_common import STOP, Setting, force_lengths, lengths_of, prompts_of
    from step3_ppo.config import PPOConfig
    from step3_ppo.experience import make_experience
    from step3_ppo.optimise import optimise
    from step3_ppo.roles import build_roles
    from step3_ppo.rollout import roll_out

    torch.set_flush_denormal(True)  # as a stage does
    distributed.init(0)
    setting = Setting(**arguments["setting"])
    config = PPOConfig(
        actor_model=str(folder / "actor"),
        reward_model=str(folder / "reward"),
        output_dir=folder / "output",
        dtype=arguments["variant"].split()[-1],
        inference_dtype=arguments["variant"].split()[-1],
        inference_copy="on",  # its weights lie in the order of the CPU's kernels
        rollout_batch_size=setting.batch,
        mini_batch_size=setting.batch,
        micro_batch_size=arguments["micro_batch_size"],
        max_prompt_length=setting.prompt,
        max_response_length=setting.response,
        ema=False,
    )
    roles = build_roles(config, optimizer_steps=1000)
    lm = roles.actor.engine.module.lm
    prompts = prompts_of(setting, lm.config.vocab_size)
    sampling = Sampling(setting.response, stop_token_ids=(STOP,))
    take = force_lengths(roles.actor.hybrid.sampler)
    step = 0

    def once(index: int) -> dict[str, float]:
        nonlocal step
        import time

        take(lengths_of(setting, index))
        began = time.process_time()
        with roles.actor.hybrid.generating() as sampler:
            rollout = roll_out(sampler, prompts, sampling, messages=["[]"] * len(prompts), seed=0, iteration=index)
        generated = time.process_time()
        experience = make_experience(rollout, roles, config, kl_coef=config.kl_coef)
        scored = time.process_time()
        totals = optimise(experience, roles, config, iteration=index, first_step=step)
        step += totals.steps
        ended = time.process_time()
        return {
            "tokens": float(sum(len(r) for r in rollout.responses)),
            "generate_cpu_seconds": generated - began,
            "score_cpu_seconds": scored - generated,
            "train_cpu_seconds": ended - scored,
            "flip_seconds": roles.actor.hybrid.figures()["time/flip"],
        }

    return once


def on_ranks(arguments: dict[str, Any], folder: Path, ranks: int) -> Callable[[int], dict[str, float]]:
    """The same by several processes: this one is rank 0, starts the others, and tells them when a round begins."""
    import os
    import subprocess

    from rlhf import distributed

    rank = int(os.environ.get("RANK", "0"))
    if "RANK" not in os.environ:
        port = str(distributed.free_port())
        shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port}
        for other in range(1, ranks):
            own = {"RANK": str(other), "LOCAL_RANK": str(other)}
            subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps(arguments)],
                env={**os.environ, **shared, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL,
            )
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
    iteration = ours(arguments, folder)

    def once(index: int) -> dict[str, float]:
        distributed.gather_objects(index)
        return iteration(index)

    if rank == 0:
        return once
    while True:  # until rank 0 is gone
        try:
            index = distributed.gather_objects(0)[0]
        except RuntimeError:
            os._exit(0)
        iteration(index)


def trl(arguments: dict[str, Any], folder: Path, answer: Callable[[], None], wait: Callable[[], None]) -> None:
    """TRL's training loop, which stops at the end of each step until the driver asks for the next."""
    import torch
    import transformers
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]

    from scripts.bench_common import Setting, prompts_of

    setting, variant = Setting(**arguments["setting"]), arguments["variant"]
    dtype = torch.bfloat16 if variant == "TRL bf16" else torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "actor", padding_side="left")

    def scalar() -> Any:
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            folder / "reward", num_labels=1, dtype=dtype
        )

    def causal() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder / "actor", dtype=dtype)

    policy = causal()
    prompts = prompts_of(setting, policy.config.vocab_size)
    dataset = Dataset.from_dict({"input_ids": prompts})
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=setting.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=setting.batch,
        response_length=setting.response,
        total_episodes=setting.batch * 1000,
        num_sample_generations=0,
        temperature=1.0,
        learning_rate=1e-6,
        use_cpu=True,
        bf16=variant == "TRL autocast bf16",
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        missing_eos_penalty=1.0,
        stop_token_id=2,
    )

    class Turns(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            answer()
            wait()

    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=causal(),
        reward_model=scalar(),
        value_model=scalar(),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[Turns()],
    )
    trainer.train()


def worker(arguments: dict[str, Any]) -> None:
    import os
    import resource
    import time

    import torch

    from scripts.bench_common import claim_stdout, serve

    answers = claim_stdout()
    torch.set_num_threads(int(arguments["threads"]))
    folder = Path(arguments["folder"])
    if arguments["variant"].startswith("ours"):
        ranks = int(arguments.get("ranks", 1))
        serve(ours(arguments, folder) if ranks == 1 else on_ranks(arguments, folder, ranks), answers)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    clock = [0.0, 0.0]

    def answer() -> None:
        figures = {
            "tokens": float(arguments["setting"]["batch"] * arguments["setting"]["response"]),
            "cpu_seconds": time.process_time() - clock[0],
            "wall_seconds": time.monotonic() - clock[1],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(figures), file=answers, flush=True)

    def wait() -> None:
        if not sys.stdin.readline():
            os._exit(0)
        clock[:] = [time.process_time(), time.monotonic()]

    trl(arguments, folder, answer, wait)


def flops(setting: Any, tokens: float) -> dict[str, float]:
    """Useful operations of an iteration: generation; scoring (actor, critic, reference, reward model forward); training
    (actor and critic: forward and twice that backward). Linear layers and attention; heads at response tokens only."""
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
        "score": 4 * body + 2 * head,
        "train": 3 * (2 * body + head),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench/ppo"))
    parser.add_argument("--trl-python", help="the interpreter of an environment with TRL 1.12.0; without it ours alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch-size", type=int, default=4, help="of ours; TRL takes the whole batch at once")
    parser.add_argument("--ours", default=",".join(OURS), help="variants of ours, separated by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="variants of TRL, separated by commas")
    parser.add_argument("--ranks", type=int, default=1, help="also ours on so many ranks, at the full length")
    parser.add_argument("--real-model", help="folder of a real model, run at 16×(64+64)")
    parser.add_argument("--only", help="models whose name holds this text")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return
    from scripts.bench_common import Setting, Worker, describe, gemm_peak, in_turns, picture, write_results

    results: dict[str, Any] = {"threads": options.threads, "settings": []}
    bars: dict[str, list[tuple[str, float]]] = {}
    for model, length in (("7.3M", 64), ("58M", 128), (options.real_model, 64)):
        if not model or (options.only and options.only not in model):
            continue
        with tempfile.TemporaryDirectory(prefix="bench-ppo-") as folder:
            full = Setting(model, 16, length, length, False)
            save_models(full, Path(folder))
            peaks = {dtype: gemm_peak(dtype, options.threads) for dtype in ("fp32", "bf16")}
            shared = {
                "threads": options.threads,
                "folder": folder,
                "micro_batch_size": options.micro_batch_size,
            }
            workers, lengths = [], []
            for ends in (False, True):
                for variant in options.ours.split(","):
                    setting = Setting(model, 16, length, length, ends)
                    arguments = {**shared, "setting": vars(setting), "variant": variant}
                    workers.append(Worker(__file__, arguments, threads=options.threads))
                    lengths.append(setting)
            for variant in options.ours.split(",") if options.ranks > 1 else ():
                label = f"{variant.replace('ours', f'ours on {options.ranks} ranks')}"
                arguments = {**shared, "setting": vars(full), "variant": label, "ranks": options.ranks}
                workers.append(Worker(__file__, arguments, threads=options.threads))
                lengths.append(full)
            for variant in options.peers.split(",") if options.trl_python else ():
                arguments = {**shared, "setting": vars(full), "variant": variant}
                workers.append(Worker(__file__, arguments, threads=options.threads, python=options.trl_python))
                lengths.append(full)
            found = in_turns(workers, options.rounds)
        for one, setting in zip(found, lengths, strict=True):
            one["setting"] = describe(setting)
            ranks = options.ranks if f"on {options.ranks} ranks" in one["variant"] else 1
            work = {part: value / ranks for part, value in flops(setting, one["tokens"]).items()}
            one["share_of_gemm_peak"] = sum(work.values()) / one["cpu_seconds"] / peaks[one["variant"].split()[-1]]
            if "train_cpu_seconds" in one:
                one["share_of_gemm_peak_training"] = (
                    work["train"] / one["train_cpu_seconds"] / peaks[one["variant"].split()[-1]]
                )
        results["settings"].append({"model": model, "gemm_peak": peaks, "contenders": found})
        print(
            f"\n{model} 16×({length}+{length}): GEMM peak fp32 {peaks['fp32'] / 1e9:.0f}, "
            f"bf16 {peaks['bf16'] / 1e9:.0f} GFLOP/s"
        )
        peers = [one for one in found if one["variant"] in PEERS]
        best = min(peers, key=lambda one: one["cpu_seconds"]) if peers else None
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
                if best:
                    text += f"  {best['mean_cpu_seconds'] / one['mean_cpu_seconds']:.2f}× {best['variant']}"
            print(text, flush=True)
        alone = {one["variant"]: one for one, setting in zip(found, lengths, strict=True) if not setting.ends}
        for variant in options.ours.split(",") if options.ranks > 1 else ():
            together = alone[variant.replace("ours", f"ours on {options.ranks} ranks")]
            ratio = alone[variant]["wall_seconds"] / together["wall_seconds"]
            print(f"  {variant}: {options.ranks} ranks are {ratio:.2f}× as fast as one, by the clock")
        write_results(options.output, results)
    picture(options.output / "ppo.svg", f"One PPO iteration, {options.threads} thread(s)", bars, "CPU-s")
    print(f"\nwritten: {options.output}/results.json, ppo.svg")


if __name__ == "__main__":
    sys.exit(main())
