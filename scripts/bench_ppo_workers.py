"""The contenders of `bench_ppo`, each in its own process: an iteration of ours, on one rank or several, and TRL's.

The driver starts them with `--worker` and the arguments as JSON; they answer on stdout, one line for each round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESPONSES = 4  # to a prompt, without a critic


def config_of(arguments: dict[str, Any], folder: Path) -> Any:
    """Stage 3's settings of a contender of ours."""
    from scripts.bench_common import Setting
    from step3_ppo.config import PPOConfig
    from step3_ppo.estimators import ESTIMATORS

    setting = Setting(**arguments["setting"])
    words = arguments["variant"].split()
    dtype = words[-1]
    # "ours scoring16 bf16": so many rows in a pass without gradients
    named = [word for word in words if word in ESTIMATORS]  # "ours rloo bf16": without a critic
    without_critic = {"advantage_estimator": named[0], "responses_per_prompt": RESPONSES} if named else {}
    return PPOConfig(
        actor_model=str(folder / "actor"),
        reward_model=str(folder / "reward"),
        output_dir=folder / "output",
        dtype=dtype,
        inference_dtype=dtype,
        inference_copy="on",  # its weights lie in the order of the CPU's kernels
        rollout_batch_size=setting.batch,
        mini_batch_size=setting.batch,
        micro_batch_size=arguments["micro_batch_size"],
        scoring_micro_batch_size=next((int(word[7:]) for word in words if word.startswith("scoring")), None),
        max_prompt_length=setting.prompt,
        max_response_length=setting.response,
        reuse_forward="reuse" in arguments["variant"],
        compile="compiled" in arguments["variant"],
        ema=False,
        **without_critic,
    )


def ours(arguments: dict[str, Any], folder: Path) -> Callable[[int], dict[str, float]]:
    """An iteration of ours, with the functions that stage 3's main loop calls."""
    from rlhf.generation.drawing import Sampling
    from rlhf.training import cpu, distributed
    from scripts.bench_common import STOP, Setting, force_lengths, lengths_of, prompts_of
    from step3_ppo.advantages import normalise_scores
    from step3_ppo.experience import make_experience
    from step3_ppo.optimise import optimise
    from step3_ppo.passes import ForwardPasses
    from step3_ppo.roles import build_roles
    from step3_ppo.rollout import roll_out

    cpu.tune()  # as a stage does
    distributed.init(0)
    setting = Setting(**arguments["setting"])
    config = config_of(arguments, folder)
    roles = build_roles(config, optimizer_steps=1000)
    passes = ForwardPasses(roles, config)
    lm = roles.actor.engine.module.lm
    prompts = prompts_of(setting, lm.config.vocab_size)
    prompts = [prompts[row - row % config.responses_per_prompt] for row in range(len(prompts))]
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
        m = passes.measure(rollout, index)
        scores_B = normalise_scores(
            m.scores_B, mean=roles.reward.score_mean, std=roles.reward.score_std, clip=config.score_clip
        )
        scores_B = scores_B - (~rollout.stopped_B).float()
        experience = make_experience(m, scores_B, config, kl_coef=config.kl_coef)
        scored = time.process_time()
        totals = optimise(experience, passes, config, iteration=index, steps_before=step)
        step += totals.steps
        ended = time.process_time()
        return {
            "tokens": float(sum(len(r) for r in rollout.responses)),
            "generate_cpu_seconds": generated - began,
            "score_cpu_seconds": scored - generated,
            "train_cpu_seconds": ended - scored,
            "flip_seconds": roles.actor.hybrid.timings()["time/flip"],
        }

    return once


def on_ranks(arguments: dict[str, Any], folder: Path, ranks: int) -> Callable[[int], dict[str, float]]:
    """An iteration of ours on several ranks. This process is rank 0; it starts the others and tells them to begin."""
    import os
    import subprocess

    from rlhf import hardware
    from rlhf.training import distributed

    rank = int(os.environ.get("RANK", "0"))
    if "RANK" not in os.environ:
        port = str(hardware.free_port())
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


def turns(answer: Callable[[], None], wait: Callable[[], None]) -> Any:
    """A callback of a trainer: it stops at the end of each step until the driver asks for the next."""
    import transformers

    class Turns(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            answer()
            wait()

    return Turns()


def trl_without_critic(arguments: dict[str, Any], folder: Path, callback: Any) -> None:
    """TRL's RLOOTrainer or GRPOTrainer: "TRL rloo bf16". Its responses have their full length. The reward model reads
    ids, because random weights generate ids that are no text."""
    import torch
    import transformers
    import trl  # type: ignore[import-not-found]
    from datasets import Dataset

    from scripts.bench_common import Setting, prompts_of

    setting, (_, name, number_format) = Setting(**arguments["setting"]), arguments["variant"].split()
    dtype, kind = (torch.bfloat16 if number_format == "bf16" else torch.float32), name.upper()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "actor", padding_side="left")
    reward_model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=1, dtype=dtype
    ).eval()
    policy: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "actor", dtype=dtype)
    policy.config._name_or_path = str(folder / "actor")  # TRL loads its reference from there
    prompts = prompts_of(setting, policy.config.vocab_size)[: setting.batch // RESPONSES]

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        whole = [ids_of[prompt] + response for prompt, response in zip(prompts, completion_ids, strict=True)]
        with torch.no_grad():
            return reward_model(input_ids=torch.tensor(whole)).logits[:, 0].float().tolist()

    ids_of = {str(row): prompt for row, prompt in enumerate(prompts)}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder / "trl"), per_device_train_batch_size=setting.batch, num_generations=RESPONSES,
        max_completion_length=setting.response, generation_kwargs={"min_new_tokens": setting.response}, beta=0.05,
        num_iterations=1, learning_rate=1e-6, max_steps=1000, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, model_init_kwargs={"dtype": dtype},
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=policy,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(ids_of)}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer._tokenize_prompts = lambda asked: ([ids_of[prompt] for prompt in asked], None, {})
    trainer.train()


def trl(arguments: dict[str, Any], folder: Path, callback: Any) -> None:
    """TRL's training loop, which stops at the end of each step until the driver asks for the next."""
    import torch
    import transformers
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]

    from scripts.bench_common import Setting, prompts_of

    setting, variant = Setting(**arguments["setting"]), arguments["variant"]
    dtype = torch.bfloat16 if variant in ("TRL bf16", "TRL compiled bf16") else torch.float32
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
        torch_compile="compiled" in variant,
        use_cpu=True,
        bf16=variant == "TRL autocast bf16",
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        missing_eos_penalty=1.0,
        stop_token_id=2,
    )

    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=causal(),
        reward_model=scalar(),
        value_model=scalar(),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[callback],
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

    without_critic = set(arguments["variant"].split()) & {"rloo", "grpo"}
    (trl_without_critic if without_critic else trl)(arguments, folder, turns(answer, wait))


if __name__ == "__main__":
    worker(json.loads(sys.argv[2]))
