"""What TRL's DPOTrainer and KTOTrainer make of a fixed batch: losses, rewards and gradients, written as JSON.

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.16.0
    trl/bin/python -m scripts.trl_preferences > tests/scripts/trl_preferences.json

tests/scripts/test_trl_preferences.py lets step2_dpo do the same and compares. Models, tokenizer and the summary of
gradients are those of `scripts.trl_numbers`. Imports nothing else of ours: TRL's environment lacks what the rest needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.trl_numbers import build_model, summaries, tokenizer, write

BETA, SMOOTHING, GOOD_WEIGHT, BAD_WEIGHT = 0.3, 0.1, 1.5, 0.8
# prompt, better response, worse response; 2 is the end token
PAIRS = [
    ([5, 9, 17], [7, 12, 2], [33, 14, 15, 2]),
    ([30, 11, 6, 8, 40], [44, 2], [45, 46, 2]),
    ([21], [3, 4, 5, 6, 7, 2], [10, 2]),
    ([13, 22], [23, 24, 2], [25, 26, 27, 28, 29, 2]),
]
# prompt, response, whether it is good
RESPONSES = [
    ([5, 9, 17], [7, 12, 2], True),
    ([30, 11, 6, 8, 40], [45, 46, 2], False),
    ([21], [3, 4, 5, 6, 7, 2], True),
    ([13, 22], [25, 26, 27, 28, 29, 2], False),
    ([36, 37, 38], [41, 2], True),
]
# TRL has −(1 − ε) log σ(z) − ε log σ(−z) only as a sum: 2 (1 − ε) times its sigmoid less (1 − 2ε) times its robust.
SMOOTHED = {
    "loss_type": ["sigmoid", "robust"],
    "loss_weights": [2 * (1 - SMOOTHING), -(1 - 2 * SMOOTHING)],
    "label_smoothing": SMOOTHING,
}
# name → (TRL's trainer, its settings, step2_dpo's settings)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dpo": ("DPO", {"loss_type": ["sigmoid"]}, {}),
    "dpo, label smoothing": ("DPO", SMOOTHED, {"label_smoothing": SMOOTHING}),
    "dpo, by length": ("DPO", {"loss_type": ["sigmoid_norm"]}, {"length_normalised": True}),
    "ipo": ("DPO", {"loss_type": ["ipo"]}, {"loss": "ipo"}),
    "kto": ("KTO", {}, {"loss": "kto"}),
    "kto, weights": (
        "KTO",
        {"desirable_weight": GOOD_WEIGHT, "undesirable_weight": BAD_WEIGHT},
        {"loss": "kto", "desirable_weight": GOOD_WEIGHT, "undesirable_weight": BAD_WEIGHT},
    ),
}


def rows_of(kind: str) -> list[dict[str, Any]]:
    """The batch as TRL reads it: texts without the end token, which it adds."""

    def text(ids: list[int]) -> str:
        return " ".join(f"w{token}" for token in ids if token != 2)

    if kind == "KTO":
        return [{"prompt": text(p), "completion": f" {text(r)}", "label": good} for p, r, good in RESPONSES]
    return [{"prompt": text(p), "chosen": f" {text(c)}", "rejected": f" {text(r)}"} for p, c, r in PAIRS]


def numbers_of_trl(name: str, folder: Path) -> dict[str, Any]:
    """The trainer of a case on the whole batch, up to the gradient of one step. The reference is another model."""
    import trl  # type: ignore[import-not-found]
    from datasets import Dataset

    kind, settings, _ = CASES[name]
    rows = rows_of(kind)
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=len(rows), beta=BETA, report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=build_model(2),
        ref_model=build_model(0),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    (inputs,) = trainer.get_train_dataloader()
    model = trainer.model.train()
    loss = trainer._compute_loss(model, inputs, return_outputs=False)
    loss.backward()
    metrics = trainer._metrics["train"]
    return {
        "loss": float(loss.detach()),
        **{each: metrics[f"rewards/{each}"][-1] for each in ("chosen", "rejected")},
        **({"kl": metrics["kl"][-1]} if "kl" in metrics else {}),
        "input_ids": inputs["input_ids"].tolist(),
        "gradients": summaries({n: p.grad for n, p in model.named_parameters()}),
    }


if __name__ == "__main__":
    write(numbers_of_trl, CASES)
