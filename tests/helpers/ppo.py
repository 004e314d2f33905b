"""Roles of stage 3 from tiny folders, and a fixed rollout: shared by tests of experience and optimisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf.models.tensors import whiten
from step3_ppo.advantages import estimate_advantages, kl_per_token, normalise_scores, shape_rewards
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Experience, Measured
from step3_ppo.rewards.function import Scorer
from step3_ppo.roles import Critic, Roles, build_roles
from step3_ppo.rollout import Rollout
from tests.helpers.tiny import FAMILIES, save_tiny, tiny_tokenizer

SCORE_MEAN, SCORE_STD = 0.25, 0.5


def save_reward_model(folder: Path, family: str = "llama", seed: int = 7) -> Path:
    """A random reward model of a family, as stage 2 exports it."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.num_labels = 1
    model: Any = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        nn.init.normal_(model.score.weight, std=0.3)
    model.config.score_mean, model.config.score_std = SCORE_MEAN, SCORE_STD
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_models(folder: Path, family: str = "llama") -> dict[str, str]:
    """Folders of an actor and a reward model, as settings of stage 3."""
    return {
        "actor_model": str(save_tiny(folder / "actor", family)),
        "reward_model": str(save_reward_model(folder / "reward", family)),
    }


def config(models: dict[str, str], **changes: Any) -> PPOConfig:
    values: dict[str, Any] = {
        **models, "dtype": "fp32", "rollout_batch_size": 8, "mini_batch_size": 8, "micro_batch_size": 8,
        "max_prompt_length": 16, "max_response_length": 8, "gradient_clipping": 0.0, "warmup_ratio": 0.0,
    }  # fmt: skip
    return PPOConfig(**(values | changes))


def roles(settings: PPOConfig, *, steps: int = 10) -> Roles:
    return build_roles(settings, optimizer_steps=steps)


def critic_of(roles: Roles) -> Critic:
    """The critic of roles that have one."""
    assert roles.critic is not None
    return roles.critic


def learnable(m: Measured, reward: Scorer, settings: PPOConfig, *, kl_coef: float) -> Experience:
    """Steps 3 and 4 of an iteration, as in the loop of stage 3 (tests/test_stages.py tests the loop's own)."""
    mask_BR = m.response_mask_BR
    scores_B = normalise_scores(m.scores_B, mean=reward.score_mean, std=reward.score_std, clip=settings.score_clip)
    scores_B = scores_B - settings.missing_eos_penalty * (~m.rollout.stopped_B)
    kl_BR = kl_per_token(m.old_logprobs_BR, m.ref_logprobs_BR, mask_BR)
    rewards_BR = shape_rewards(scores_B, kl_BR, mask_BR, kl_coef=kl_coef)
    if settings.whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, keep_mean=True)
    assert m.values_BR is not None
    gamma, gae_lambda = settings.gamma, settings.gae_lambda
    advantages_BR, returns_BR = estimate_advantages(
        m.values_BR, rewards_BR, mask_BR, gamma=gamma, gae_lambda=gae_lambda
    )
    return Experience.of(m, scores_B, kl_BR, rewards_BR, whiten(advantages_BR, mask_BR), returns_BR)


def rollout(*, even: bool = False) -> Rollout:
    """8 fixed prompts and responses of different lengths (`even`: of the same, so that nothing is padded)."""
    generator = torch.Generator().manual_seed(11)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 259, (count,), generator=generator).tolist()

    prompts = [ids(6 if even else 3 + row) for row in range(8)]
    responses = [ids(5 if even else 1 + (row * 3) % 7) for row in range(8)]
    stopped = torch.tensor([row % 3 != 0 for row in range(8)])
    for row in range(8):
        if stopped[row]:
            responses[row][-1] = 2
    messages = [json.dumps([{"role": "user", "content": f"question {row}"}]) for row in range(8)]
    return Rollout(prompts, responses, [[0.0] * len(r) for r in responses], stopped, messages)


def fixed_rollout(sampler: Any, prompts: Any, sampling: Any, **options: Any) -> Rollout:
    """In the place of `roll_out`: responses that depend on the iteration and the row alone, so that noise cannot change
    what is learned from."""
    generator = torch.Generator().manual_seed(options["iteration"])
    lengths = torch.randint(2, sampling.max_new_tokens, (len(prompts),), generator=generator).tolist()
    responses = [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]
    return Rollout(
        prompts=[list(p) for p in prompts],
        responses=responses,
        sampler_logprobs=[[0.0] * n for n in lengths],
        stopped_B=torch.tensor([n % 2 == 0 for n in lengths]),
        messages=list(options["messages"]),
    )


def experience(fixed: Rollout, *, seed: int = 3) -> Experience:
    """Random tables for a rollout, such that some ratios and values lie outside the clip ranges."""
    generator = torch.Generator().manual_seed(seed)
    mask = fixed.response_mask_BR

    def table(scale: float, shift: float = 0.0) -> Tensor:
        return torch.where(mask, torch.randn(mask.shape, generator=generator) * scale + shift, 0.0)

    return Experience(
        rollout=fixed,
        response_mask_BR=mask,
        old_logprobs_BR=table(0.3, -5.7),  # near log(1/320), what a random model says
        ref_logprobs_BR=table(0.3, -5.7),
        entropy_BR=table(0.1, 5.0),
        values_BR=table(0.5),
        scores_B=torch.randn(8, generator=generator),
        final_scores_B=torch.randn(8, generator=generator),
        kl_BR=table(0.1),
        rewards_BR=table(0.5),
        advantages_BR=table(1.0),
        returns_BR=table(0.7),
    )


# --- the same by plain torch, row by row, without padding -------------------------------------------------------------


def sequence(fixed: Rollout, row: int) -> tuple[Tensor, slice]:
    """One sequence as [1, T], and where its response's tokens are predicted."""
    prompt, response = fixed.prompts[row], fixed.responses[row]
    return torch.tensor([prompt + response]), slice(len(prompt) - 1, len(prompt) + len(response) - 1)


def plain_logprobs(lm: Any, fixed: Rollout, row: int, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy of a row's response tokens, from the whole table of logits: [R] each."""
    ids, where = sequence(fixed, row)
    logprobs_TV = (lm(input_ids=ids, use_cache=False).logits[0].float() / temperature).log_softmax(-1)[where]
    entropy = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return logprobs_TV.gather(1, torch.tensor(fixed.responses[row])[:, None])[:, 0], entropy


def plain_values(model: Any, fixed: Rollout, row: int) -> Tensor:
    """The normalised head at the position before each response token, [R]."""
    ids, where = sequence(fixed, row)
    hidden = model.base_model(input_ids=ids, use_cache=False)[0][0]
    return (model.score(hidden)[:, 0][where] - SCORE_MEAN) / SCORE_STD


def flat(table_BR: Tensor | None, fixed: Rollout, row: int) -> Tensor:
    assert table_BR is not None
    return table_BR[row, : len(fixed.responses[row])]


def text_rows(count: int = 8) -> list[dict[str, Sequence[int]]]:
    """Rows of a pretraining mix, of different lengths."""
    generator = torch.Generator().manual_seed(21)
    return [{"input_ids": torch.randint(3, 259, (4 + 2 * row,), generator=generator).tolist()} for row in range(count)]
