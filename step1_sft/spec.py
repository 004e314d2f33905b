"""Stage 1 as a value: its models, the checks of its inputs, its part of the report. Imports no torch."""

from __future__ import annotations

from data import preflight
from data.expected import expected_rows, learns_earlier_turns
from data.packing import packing_problem
from rlhf.hardware import Machine
from rlhf.memory.workload import Workload, role_of, step_count, workload_of
from rlhf.models.names import length_problems
from rlhf.stages.spec import Chart, Headline, Layout, ModelInput, ModelOutput, Models, StageSpec
from step1_sft.config import SFTConfig


def problems(config: SFTConfig, models: Models, machine: Machine) -> list[str]:
    """Problems with the model and the data, one line each."""
    found = []
    if model := models.get("model"):
        found += length_problems(model, config.model, config.max_prompt_length + config.max_response_length)
        problem = packing_problem(model) if config.packing else None
        found += [problem] if problem else []
    return found + preflight.problems(config, stage=1, ask_hub=not machine.described)


def workload(config: SFTConfig, models: Models, machine: Machine) -> Workload | None:
    """The memory and the work of the stage."""
    if "model" not in models:
        return None
    model = role_of("model", models["model"], config, machine, model=config.model, adapters=True)
    tokens = config.max_prompt_length + config.max_response_length
    all_count = config.train_on_prompt or config.packing
    all_count = all_count or (config.learn == "all" and learns_earlier_turns(config, config.data_path))
    counted = tokens if all_count else config.max_response_length
    count = None if config.packing else expected_rows(config, stage=1)
    count = step_count(count, config.mini_batch_size, passes=config.epochs, most=config.max_steps)
    return workload_of((model,), config, machine, tokens=tokens, counted=counted, count=count)


LAYOUT = Layout(
    "Stage 1: supervised fine-tuning",
    "optimiser step",
    (
        Chart("Loss", ("sft/loss",), "nats per counted token"),
        Chart("Held-out perplexity", ("sft/perplexity",), "exp of the mean loss on held-out rows"),
        Chart("Gradient norm", ("sft/grad_norm",), "before clipping", floor=0),
        Chart("Learning rate", ("sft/learning_rate",), floor=0, noisy=False),
    ),
    results={"sft/perplexity_before": "perplexity before", "sft/perplexity": "perplexity after", "sft/steps": "steps"},
    headlines=(Headline("SFT perplexity", "sft/perplexity", before="sft/perplexity_before"),),
)

SPEC = StageSpec(
    number=1,
    package="step1_sft",
    config_class=SFTConfig,
    problems=problems,
    inputs=(ModelInput("model", "language", "a pretrained model", flags=("actor_model",)),),
    outputs=(ModelOutput("sft", "model", of="model", title="SFT"),),
    layout=LAYOUT,
    workload=workload,
)
