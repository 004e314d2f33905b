"""DPO and its relatives as a value: its model, the checks of its inputs, its part of the report. Imports no torch."""

from __future__ import annotations

from typing import Any

from data import preflight
from data.expected import expected_rows
from rlhf.hardware import Machine
from rlhf.memory.workload import Workload, role_of, step_count, workload_of
from rlhf.models.names import length_problems
from rlhf.stages.spec import Chart, Headline, Layout, ModelInput, ModelOutput, Models, StageSpec
from step2_dpo.config import TITLES, DPOConfig

HELD_OUT_NAME = "held_out_prompts.jsonl"


def problems(config: DPOConfig, models: Models, machine: Machine) -> list[str]:
    """Problems with the model and the data, one line each."""
    found = []
    if model := models.get("model"):
        found += length_problems(model, config.model, config.max_prompt_length + config.max_response_length)
    kind = "unpaired" if config.loss == "kto" else "preferences"
    return found + preflight.problems(
        config,
        stage=2,
        kind=kind,
        demonstrations=config.learn_demonstrations,
        ask_hub=not machine.described,
    )


def workload(config: DPOConfig, models: Models, machine: Machine) -> Workload | None:
    """The memory and the work of the stage: one model, which is its own reference before it is trained. A pair has two
    sequences; KTO also looks at the mismatched responses of a step."""
    if "model" not in models:
        return None
    model = role_of("model", models["model"], config, machine, model=config.model, adapters=True)
    tokens = config.max_prompt_length + config.max_response_length
    count = step_count(
        expected_rows(config, stage=2), config.mini_batch_size, passes=config.epochs, most=config.max_steps
    )
    kto = config.loss == "kto"
    return workload_of(
        (model,),
        config,
        machine,
        tokens=tokens,
        counted=config.max_response_length,
        count=count,
        sequences=1 if kto else 2,
        looks=1 if kto else 0,
    )


def evaluation(config: DPOConfig) -> dict[str, Any]:
    """Settings of the evaluation on the prompts that the stage holds out."""
    return {"prompts": str(config.output_dir / HELD_OUT_NAME), "max_new_tokens": config.max_response_length}


LAYOUT = Layout(
    "Stage 2: DPO",
    "optimiser step",
    (
        Chart(
            "Loss", ("dpo/loss", "dpo/eval_loss"), "of a pair or a response; the reference's own is 0.693 with sigmoid"
        ),
        Chart(
            "Accuracy",
            ("dpo/accuracy", "dpo/train_accuracy"),
            "share of pairs whose chosen response gained more than the rejected one; with kto, held out, of all "
            "couples of a good and a bad one, and, trained on, the share of responses on their side of the baseline",
            0,
            1,
        ),
        Chart("Margin", ("dpo/margin",), "reward of chosen minus rejected, held-out responses"),
        Chart(
            "Rewards",
            ("dpo/chosen_reward", "dpo/rejected_reward"),
            "beta · log-ratio to the reference, held-out responses; below 0 both became less likely",
        ),
        Chart("KL to the reference", ("dpo/kl",), "nats per response, estimated on held-out ones (r² / 2)", floor=0),
        Chart("Baseline", ("dpo/baseline", "dpo/eval_baseline"), "z0 of kto: nats per mismatched response", floor=0),
        Chart("Gradient norm", ("dpo/grad_norm",), "before clipping", floor=0),
        Chart("Learning rate", ("dpo/learning_rate",), floor=0, noisy=False),
    ),
    results={
        "dpo/accuracy": "held-out accuracy",
        "dpo/margin": "margin",
        "dpo/kl": "KL",
        "dpo/steps": "steps",
    },
    headlines=(Headline("pairs in the right order", "dpo/accuracy", before="dpo/accuracy_before"),),
)

SPEC = StageSpec(
    number=2,
    package="step2_dpo",
    config_class=DPOConfig,
    problems=problems,
    inputs=(ModelInput("model", "language", "an actor", flags=("sft_model",), made_as="sft"),),
    outputs=(ModelOutput("dpo", "model", of="model", title=lambda s: TITLES[s.get("loss", "sigmoid")]),),
    layout=LAYOUT,
    evaluation=evaluation,
    workload=workload,
    methods=("dpo", "kto"),
    method_settings={"kto": {"loss": "kto"}},
)
