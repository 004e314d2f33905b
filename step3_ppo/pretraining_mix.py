"""The pretraining mix: next-token cross-entropy on plain text beside PPO, so that the actor forgets less (PPO-ptx,
Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.batches import StepSampler, own_micro_batches
from data.collate import collate_demonstrations
from data.stage_data import pretraining
from rlhf.errors import ConfigError
from rlhf.training import distributed
from step3_ppo.config import PPOConfig
from step3_ppo.roles import Actor

INSTRUCT_GPT_COEF = 27.8


@dataclass
class PretrainingMix:
    """Rows of plain text, which of them each optimiser step takes, and the factor of their loss."""

    rows: Any
    sampler: StepSampler
    coef: float


def load_pretraining_mix(config: PPOConfig, tokenizer: Any) -> PretrainingMix | None:
    """The mix that the settings ask for; None without `ptx_data`. Raises ConfigError if the data hold no text."""
    if not config.ptx_data:
        return None
    rows = pretraining(config, tokenizer)
    if not len(rows):
        raise ConfigError(f"step3_ppo.ptx_data {', '.join(config.ptx_data)}: no rows of text")
    coef = INSTRUCT_GPT_COEF if config.ptx_coef is None else config.ptx_coef
    return PretrainingMix(rows, StepSampler(len(rows), config.mini_batch_size, config.seed), coef)


def ptx_backward(mix: PretrainingMix, actor: Actor, *, step: int, micro_batch_size: int) -> float:
    """Add the gradient of coef · loss to that of the actor's optimiser step `step` (counted over all iterations).

    The loss is the mean cross-entropy over all tokens but each row's first, over all ranks; it is returned, in nats.
    """
    device = distributed.device()
    parts = own_micro_batches(mix.sampler.rows(step), micro_batch_size=micro_batch_size)
    batches = [
        collate_demonstrations(
            [{"input_ids": mix.rows[i]["input_ids"]} for i in part],
            pad_token_id=actor.tokenizer.pad_token_id,
            train_on_prompt=True,
        )
        for part in parts
    ]
    (count,) = distributed.sum_over_ranks(sum(int(b.loss_mask_BT.sum()) for b in batches))
    loss_sum = 0.0
    for batch in batches:
        tokens = actor.engine(batch.input_ids_BT.to(device), batch.loss_mask_BT.to(device))
        micro_sum = -tokens.logprobs_N.sum()
        actor.engine.backward(mix.coef * micro_sum, count=count)
        loss_sum += float(micro_sum.detach())
    (loss_sum,) = distributed.sum_over_ranks(loss_sum)
    return loss_sum / max(count, 1)
