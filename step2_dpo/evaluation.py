"""A policy's figures on held-out pairs, and the prompts that the models of a run are compared on afterwards."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from data.config import DataSettings
from data.divide import divide, open_all
from data.encode import Encoder
from data.stage_data import limits
from data.tokens import encoded
from rlhf import process
from rlhf.json_lines import write_json_lines
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from step2_dpo.batches import collate, shares, token_logprobs
from step2_dpo.config import DPOConfig
from step2_dpo.loss import dpo_losses, held_out_figures, ipo_losses, kl_estimates
from step2_dpo.reference import Reference, tokens_of
from step2_dpo.spec import HELD_OUT_NAME


def pair_losses(z_B: Tensor, config: DPOConfig) -> Tensor:
    """The loss of each pair, as the settings say."""
    if config.loss == "ipo":
        return ipo_losses(z_B, beta=config.beta)
    return dpo_losses(z_B, label_smoothing=config.label_smoothing)


@torch.no_grad()
def evaluate(engine: TrainEngine, rows: Any, reference: Reference, config: DPOConfig, pad: int) -> dict[str, float]:
    """The figures on all held-out pairs, a share of them on each rank, the same on every rank."""
    engine.train(False)
    mine: list[tuple[int, float, float, float]] = []
    for part in shares(rows, range(len(rows)), config):
        batch = collate(rows, part, pad=pad)
        # an empty part has rows of padding, which `zip` leaves out
        for row, new in zip(part, tokens_of(token_logprobs(engine, batch), batch), strict=False):
            ref_N, new_N = reference.held_out[row], torch.tensor(new)
            chosen = len(rows[row]["chosen_ids"])
            scale = (chosen, max(1, len(new_N) - chosen)) if config.is_averaged else (1, 1)
            ratios = (new_N - ref_N)[:chosen].sum() / scale[0], (new_N - ref_N)[chosen:].sum() / scale[1]
            kl = float(kl_estimates(ref_N, new_N).sum()) / 2
            mine.append((row, config.beta * float(ratios[0]), config.beta * float(ratios[1]), kl))
    scored = torch.tensor(sorted(item for rank in distributed.gather_objects(mine) for item in rank))
    rewards_B2, kl_B = scored[:, 1:3], scored[:, 3]
    losses_B = pair_losses(rewards_B2[:, 0] - rewards_B2[:, 1], config)
    return held_out_figures(rewards_B2, losses_B, kl_B, sources=[rows[i]["source"] for i in range(len(rows))])


def ranked_by_reference(rows: Any, reference: Reference, config: DPOConfig) -> float:
    """The share of held-out pairs whose chosen response the reference itself finds likelier."""
    right = 0
    for row, tokens in enumerate(reference.held_out):
        chosen, rejected = tokens.split([n := len(rows[row]["chosen_ids"]), len(tokens) - n])
        right += bool(chosen.mean() > rejected.mean() if config.is_averaged else chosen.sum() > rejected.sum())
    return right / len(reference.held_out)


def write_held_out_prompts(config: DPOConfig, template: Template) -> None:
    """Write the held-out prompts of the stage's part of the data, each once, from rank 0."""
    if not process.is_main():
        return
    first, rest, _ = config.shares
    plain = {name: getattr(config, name) for name in DataSettings.model_fields}
    settings = DataSettings(**{**plain, "data_split": f"{first},0,{rest}"})
    stores, evaluation = open_all(settings)
    everything = [*stores, *evaluation]
    _, table, _ = divide(stores, evaluation, settings, stage=3)
    encoder = Encoder(template, limits(config), "prompts", skip_bad_rows=config.skip_bad_rows)
    dataset, _ = encoded(everything, table, encoder, config)
    write_json_lines(
        config.output_dir / HELD_OUT_NAME, ({"prompt": json.loads(messages)} for messages in dataset["messages"])
    )
