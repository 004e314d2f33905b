"""Stage 2 as a value: its models, the checks of its inputs, its part of the report. Imports no torch."""

from __future__ import annotations

from data import preflight
from data.expected import expected_rows
from rlhf.hardware import Machine
from rlhf.memory.workload import Workload, role_of, step_count, workload_of
from rlhf.models.names import length_problems
from rlhf.stages.spec import Chart, Headline, Layout, ModelInput, ModelOutput, Models, StageSpec
from step2_reward.config import RewardConfig


def problems(config: RewardConfig, models: Models, machine: Machine) -> list[str]:
    """Problems with the model and the data, one line each."""
    found = []
    if model := models.get("model"):
        found += length_problems(model, config.model, config.max_prompt_length + config.max_response_length)
    return found + preflight.problems(config, stage=2, ask_hub=not machine.described)


def workload(config: RewardConfig, models: Models, machine: Machine) -> Workload | None:
    """The memory and the work of the stage; a pair has two sequences."""
    if "model" not in models:
        return None
    model = role_of("model", models["model"], config, machine, model=config.model, scalar=True, adapters=True)
    tokens = config.max_prompt_length + config.max_response_length
    rows = expected_rows(config, stage=2)
    count = step_count(rows, config.mini_batch_size, passes=config.epochs, most=config.max_steps)
    return workload_of((model,), config, machine, tokens=tokens, counted=0, count=count, sequences=2)


LAYOUT = Layout(
    "Stage 2: reward model",
    "optimiser step",
    (
        Chart("Loss", ("reward/loss", "reward/eval_loss"), "nats per pair; 0.693 is chance"),
        Chart(
            "Accuracy",
            ("reward/accuracy", "reward/train_accuracy"),
            "share of pairs in the right order, held out and trained on",
            0.5,
            1,
        ),
        Chart("Margin", ("reward/margin",), "score of chosen minus rejected, held-out pairs"),
        Chart("Length correlation", ("reward/length_correlation",), "of score and length, held-out responses", -1, 1),
        Chart("Calibration error", ("reward/calibration_error",), "expected, 10 bins, held-out pairs", floor=0),
        Chart("Gradient norm", ("reward/grad_norm",), "before clipping", floor=0),
    ),
    results={
        "reward/accuracy_before": "accuracy before",
        "reward/accuracy": "held-out accuracy",
        "reward/margin": "margin",
        "reward/steps": "steps",
    },
    headlines=(Headline("reward accuracy", "reward/accuracy", before="reward/accuracy_before"),),
)

SPEC = StageSpec(
    number=2,
    package="step2_reward",
    config_class=RewardConfig,
    problems=problems,
    inputs=(ModelInput("model", "any", "a pretrained model", flags=("reward_model", "actor_model")),),
    outputs=(ModelOutput("reward", "model", of="model", kind="reward"),),
    layout=LAYOUT,
    workload=workload,
    methods=("ppo",),
)
