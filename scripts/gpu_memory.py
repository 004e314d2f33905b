"""python -m scripts.gpu_memory: the plan's memory beside what iterations of stage 3 take on a GPU, phase by phase.

    python -m scripts.gpu_memory                            # the cells for one rank
    torchrun --nproc-per-node 2 -m scripts.gpu_memory       # those for two
    python -m scripts.gpu_memory ZeRO-3                     # those with such a name
    python -m tests.pretend python -m scripts.gpu_memory    # on a pretended GPU

Models are random and small. DeepSpeed's buckets are made small, too: at their usual size they would hide all else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click

from rlhf import console
from rlhf.command import Command
from rlhf.errors import EXIT_DONE
from rlhf.hardware import Machine
from rlhf.memory import engines as planned_engines
from rlhf.memory.phases import stage_memory
from rlhf.models.names import read_config

MB = 1e6
BUCKET = 1_000_000  # elements
THREE = {f"{role}_zero_stage": 3 for role in ("actor", "critic", "reference", "reward")}


@dataclass(frozen=True)
class Cell:
    """A row of the table: its name, the size of the models, ranks, settings of stage 3."""

    name: str
    size: str
    ranks: int
    settings: dict[str, Any]


def _zero(stage: int, **more: Any) -> dict[str, Any]:
    return {**(THREE if stage == 3 else {"actor_zero_stage": stage, "critic_zero_stage": stage}), **more}


FP32 = {"dtype": "fp32", "inference_dtype": "fp32"}


def _cells(size: str) -> Iterator[Cell]:
    """ZeRO 0 to 3 on one rank and on two, plain and with LoRA, and some variants."""
    for ranks, times in ((1, ""), (2, " × 2")):
        for lora, more in (("", {}), (", LoRA", {"lora_rank": 8})):
            for stage in range(4):
                settings = _zero(stage, **(FP32 if stage == 0 else {}), **more)
                yield Cell(f"{size}, ZeRO-{stage}{times}{lora}", size, ranks, settings)
    for name, ranks, settings in (
        ("ZeRO-2 without EMA", 1, _zero(2, ema=False)),
        ("ZeRO-2, offloaded", 1, _zero(2, offload_optimizer=True)),
        ("ZeRO-2, 8 rows scored at once", 1, _zero(2, scoring_micro_batch_size=8)),
        ("ZeRO-2 × 2, tp 2", 2, _zero(2, inference_tp_size=2)),
        ("ZeRO-3 × 2, tp 2", 2, _zero(3, inference_tp_size=2)),
        ("ZeRO-3 × 2, tp 2 without EMA", 2, _zero(3, inference_tp_size=2, ema=False)),
        ("ZeRO-3 × 2, LoRA, tp 2", 2, _zero(3, lora_rank=8, inference_tp_size=2)),
    ):
        yield Cell(f"{size}, {name}", size, ranks, settings)


CELLS = [cell for size in ("opt 6M", "llama 25M") for cell in _cells(size)]


@dataclass(frozen=True)
class Mark:
    """A phase that was run: seconds, bytes of tensors when it ended, and at most."""

    seconds: float
    held: int
    peak: int


class Marks:
    """Marks the ends of phases; each begins where the last one ended."""

    def __init__(self) -> None:
        self.of: dict[str, Mark] = {}
        self.rest()

    def rest(self) -> None:
        """What was done since the last mark belongs to no phase."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.began = time.monotonic()

    def end(self, name: str) -> None:
        """The phase `name` ends here. Of one that ends several times the largest peak counts, and all its seconds."""
        import torch

        held = peak = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            held, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        before = self.of.get(name, Mark(0.0, 0, 0))
        self.of[name] = Mark(before.seconds + time.monotonic() - self.began, held, max(before.peak, peak))
        self.rest()


class Stage3:
    """Stage 3's models, and iterations of it with prompts of random ids: rollout, scoring, training of actor and
    critic, as the stage's main loop calls them. Responses have the full length."""

    def __init__(self, config: Any, *, prompt: int) -> None:
        import torch

        from rlhf.training import distributed
        from step3_ppo.ema import EMA
        from step3_ppo.passes import ForwardPasses
        from step3_ppo.roles import build_roles

        distributed.init(0)
        self.config, self.marks = config, Marks()
        self.roles = build_roles(config, optimizer_steps=10)
        self.passes = ForwardPasses(self.roles, config)
        self.ema = EMA(self.roles.actor.engine, decay=0.99) if config.ema else None
        self.marks.end("load")
        draw = torch.Generator().manual_seed(1)
        count = config.rollout_batch_size
        self.prompts = [torch.randint(3, 250, (prompt,), generator=draw).tolist() for _ in range(count)]

    def iterate(self, number: int) -> dict[str, Mark]:
        """One iteration; its phases by the names that the plan has for them."""
        from rlhf.generation.drawing import Sampling
        from step3_ppo.experience import make_experience
        from step3_ppo.optimise import optimise, steps_per_iteration
        from step3_ppo.rollout import roll_out

        self.marks.of, rows, length = {}, len(self.prompts), self.config.max_response_length
        sampling = Sampling(length, min_new_tokens=length, stop_token_ids=(2,))
        self.marks.rest()
        with self.roles.actor.hybrid.generating() as sampler:
            rollout = roll_out(
                sampler, self.prompts, sampling, messages=["[]"] * rows, seed=0, iteration=number,
                micro_batch_size=self.config.rollout_micro_batch_size,
            )  # fmt: skip
        self.marks.end("rollout")
        m = self.passes.measure(rollout, number)
        self.marks.end("score")
        experience = make_experience(m, m.scores_B, self.config, kl_coef=0.05)
        self.marks.rest()
        with self._steps_marked():
            done = number * steps_per_iteration(self.config)
            optimise(experience, self.passes, self.config, iteration=number, steps_before=done, ema=self.ema)
        return self.marks.of

    def _steps_marked(self) -> Any:
        """While inside, a step of the actor or critic ends its training and is a phase of its own."""
        import contextlib

        stack = contextlib.ExitStack()
        for role, engine in self.roles.engines.items():
            stack.enter_context(mock.patch.object(engine, "step", self._marking(role, engine.step)))
        return stack

    def _marking(self, role: str, step: Callable[[], Any]) -> Callable[[], Any]:
        def marked() -> Any:
            self.marks.end(f"train {role}")
            done = step()
            self.marks.end(f"step {role}")
            return done

        return marked


def planned(config: Any) -> dict[str, float]:
    """Bytes of tensors of each phase by the plan, for the ranks that this one is among."""
    from rlhf.training import distributed
    from step3_ppo.spec import SPEC

    ranks, gpus = distributed.world_size(), distributed.on_gpu()
    machine = Machine(ranks=ranks, gpus=gpus, bf16=distributed.gpu_has_bf16())
    models = {f"{role}_model": read_config(getattr(config, f"{role}_model")) for role in ("actor", "reward")}
    work = SPEC.workload(config, models, machine)
    assert work is not None
    return {phase.name: phase.total - phase.beside["process"] for phase in stage_memory(work, machine).phases}


def measured(folder: Path, size: str, settings: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Bytes of each phase, planned and measured; the folder of models is written by rank 0."""
    from rlhf.training import distributed, engine
    from scripts.gpu_models import llama, opt, write_model
    from step3_ppo.config import PPOConfig

    distributed.init(0)
    actor, reward = folder / "actor", folder / "reward"
    if distributed.rank() == 0:
        for path, scalar in ((actor, False), (reward, True)):
            config = opt(256, 6, 4, 4096) if size.startswith("opt") else llama(512, 1408, 6, 8, 2, 8192)
            write_model(path, config, scalar=scalar)
    distributed.barrier()
    values: dict[str, Any] = {
        "actor_model": str(actor), "reward_model": str(reward), "output_dir": folder / "out", "dtype": "bf16",
        "rollout_batch_size": 8, "mini_batch_size": 8, "micro_batch_size": 2, "max_prompt_length": 96,
        "max_response_length": 32,
    }  # fmt: skip
    config = PPOConfig(**(values | settings))
    with (
        mock.patch.object(engine, "REDUCE_BUCKET", BUCKET),
        mock.patch.object(planned_engines, "REDUCE_BUCKET", BUCKET),
    ):
        expected = planned(config)
        before = _allocated()
        stage = Stage3(config, prompt=config.max_prompt_length)
        found = dict(stage.marks.of)
        stage.iterate(0)  # makes the optimiser's state
        found |= stage.iterate(1)
    return {name: (expected[name], float(mark.peak - before)) for name, mark in found.items()}


def _allocated() -> int:
    """Bytes that are still held when what nobody needs any more is gone."""
    import gc

    import torch

    gc.collect()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def largest(phases: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The largest phase by the plan, and the largest that was measured."""
    return max(plan for plan, _ in phases.values()), max(real for _, real in phases.values())


def rows_of(found: dict[str, dict[str, tuple[float, float]]]) -> list[list[Any]]:
    """Rows of the table: MB planned and measured, the difference, and the phase that differs most."""
    rows = []
    for name, phases in found.items():
        plan, real = largest(phases)
        worst = max(phases, key=lambda phase: abs(phases[phase][0] / phases[phase][1] - 1))
        off = phases[worst][0] / phases[worst][1] - 1
        rows.append([name, plan / MB, real / MB, f"{plan / real - 1:+.1%}", f"{worst} {off:+.1%}"])
    return rows


@click.command("python -m scripts.gpu_memory", cls=Command, help=__doc__)
@click.argument("names", nargs=-1)
def main(names: Sequence[str]) -> int:
    from rlhf.training import distributed

    distributed.init(0)
    found = {}
    for cell in CELLS:
        if cell.ranks == distributed.world_size() and all(name in cell.name for name in names):
            with tempfile.TemporaryDirectory(prefix="memory-") as name:
                folder = Path(distributed.gather_objects(name)[0])
                found[cell.name] = measured(folder, cell.size, cell.settings)
                distributed.barrier()
    if distributed.rank() == 0:
        columns = ["models, settings", "planned", "measured", "", "farthest phase"]
        console.table("Largest phase of stage 3 on a rank, in MB", columns, rows_of(found))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
