"""What TRL's RLOOTrainer and GRPOTrainer make of a fixed rollout: advantages, losses and gradients, written as JSON.

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.16.0
    trl/bin/python -m scripts.trl_numbers > tests/scripts/trl_numbers.json

tests/scripts/test_trl_numbers.py lets stage 3 do the same and compares. The weights of the models are formulas, not
random numbers, so the file holds for every release of torch. Imports nothing of ours: TRL's environment lacks what the
rest needs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

VOCABULARY, GROUP, LONGEST = 48, 4, 8
KL_COEF, CLIP, CLIP_HIGH = 0.2, 0.1, 0.15
# three prompts with four responses each; 2 is the end token, and a response without it was cut off
PROMPTS = [[5, 9, 17], [30, 11, 6, 8, 40], [21]]
RESPONSES = [
    [[7, 12, 2], [33, 2], [14, 15, 16, 17, 18, 19, 20, 21], [9, 9, 9, 2]],
    [[44, 2], [45, 46, 2], [3, 4, 5, 6, 7, 2], [10, 11, 12, 13, 14, 15, 16, 17]],
    [[2], [22, 23, 24, 25, 2], [26, 2], [27, 28, 29, 2]],
]
SCORES = [[1.0, 0.0, 0.0, 1.0], [0.3, -1.2, 2.5, 0.4], [0.5, 0.5, 0.5, 0.5]]
# TRL multiplies the KL in the loss by the ratio, unless told otherwise; stage 3 takes it as the papers have it.
PLAIN_KL = {"use_bias_correction_kl": False}
# name → (TRL's trainer, its settings, stage 3's settings)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rloo": ("RLOO", {}, {"advantage_estimator": "rloo"}),
    "grpo": ("GRPO", {"loss_type": "grpo", "scale_rewards": "group", **PLAIN_KL}, {"advantage_estimator": "grpo"}),
    "dr_grpo": (
        "GRPO",
        {"loss_type": "dr_grpo", "scale_rewards": "none", **PLAIN_KL},
        {"advantage_estimator": "dr_grpo"},
    ),
    "grpo by token": (
        "GRPO",
        {"loss_type": "bnpo", "scale_rewards": "group", **PLAIN_KL},
        {"advantage_estimator": "grpo", "loss_mean": "token"},
    ),
}


def build_model(variant: int) -> Any:
    """A Llama of 12,000 weights. Variants 0 (the reference), 1 (that sampled) and 2 (that learns) differ a little."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            place = torch.arange(parameter.numel(), dtype=torch.float64) + 7 * index
            wave = 0.3 * torch.sin(1.7 * place) + 0.02 * variant * torch.cos(0.9 * place + variant)
            base = 1.0 if parameter.dim() == 1 else 0.0  # norms
            parameter.copy_((base + wave).view(parameter.shape))
    return model.eval()


def tokenizer() -> Any:
    """One word for each id."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    found = Tokenizer(models.WordLevel(words, unk_token="w3"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def summaries(gradients: dict[str, Any]) -> dict[str, list[float]]:
    """Of each weight's gradient its norm and its products with two waves, so that a wrong place shows too."""
    import torch

    found = {}
    for name, gradient in gradients.items():
        flat = gradient.double().flatten()
        place = torch.arange(len(flat), dtype=torch.float64)
        found[name] = [float(flat.norm()), *(float(flat @ torch.sin(step * place + 1)) for step in (0.7, 2.3))]
    return found


def numbers_of_trl(name: str, folder: Path) -> dict[str, Any]:
    """The trainer of a case, with fixed responses instead of its generation, up to the gradient of one step."""
    import torch
    import trl  # type: ignore[import-not-found]
    from datasets import Dataset

    kind, settings, _ = CASES[name]
    rows = sum(len(group) for group in RESPONSES)
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=rows, num_generations=GROUP, beta=KL_COEF,
        epsilon=CLIP, epsilon_high=CLIP_HIGH, max_completion_length=LONGEST, num_iterations=2, report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    data = [{"prompt": " ".join(f"w{token}" for token in prompt)} for prompt in prompts]
    scores = [score for group in SCORES for score in group]
    build_model(0).save_pretrained(folder / "reference")
    model = build_model(1)
    model.config._name_or_path = str(folder / "reference")  # from here TRL loads its reference
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        reward_funcs=lambda prompts, completions, **_: scores,
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer(),
    )
    responses = [response for group in RESPONSES for response in group]
    trainer._generate_single_turn = lambda *_: responses if kind == "RLOO" else (responses, None)
    trainer._tokenize_prompts = lambda *_: (prompts, None, {})
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    inputs = trainer._generate_and_score_completions(data)
    with torch.no_grad():  # the weights move between the rollout and the step, so ratios are not 1
        for parameter, later in zip(model.parameters(), build_model(2).parameters(), strict=True):
            parameter.copy_(later)
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    return {
        "advantages": inputs["advantages"].tolist(),
        "loss": float(loss.detach()),
        "clipped": trainer._metrics["train"]["clip_ratio/region_mean"][-1],
        "gradients": summaries({n: p.grad for n, p in model.named_parameters()}),
    }


def write(numbers: Callable[[str, Path], dict[str, Any]], cases: Iterable[str]) -> None:
    """Print the numbers of each case as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: numbers(name, Path(folder)) for name in cases}
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    write(numbers_of_trl, CASES)
