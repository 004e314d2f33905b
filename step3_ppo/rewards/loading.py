"""The scorers of a run: its reward model, or the list that `--reward` names."""

from __future__ import annotations

from typing import Any

from rlhf.models.loading import Loading, load_tokenizer
from rlhf.models.reward_model import load_reward_model, same_tokens
from rlhf.rewards.functions import Functions
from rlhf.rewards.names import TRAINED
from rlhf.template import Template
from rlhf.training.compiling import compile_layers
from step3_ppo.config import PPOConfig
from step3_ppo.rewards.model import ModelReward
from step3_ppo.rewards.weighted import Part, WeightedRewards


def load_reward(
    config: PPOConfig, name: str, tokenizer: Any, *, same_tokenizer: bool, is_any: bool = False
) -> ModelReward:
    """A reward model as a scorer; with `is_any` of any family that has a sequence classifier."""
    loading = Loading.of(config, name, tokenizer, role="reward model", no_dropout=True)
    longest = config.max_prompt_length + config.max_response_length
    reward_model = load_reward_model(loading, max_length=longest, is_any=is_any)
    if config.compile and loading.zero_stage == 0:
        compile_layers(reward_model.model)
    return ModelReward(reward_model, same_tokenizer=same_tokenizer)


def load_rewards(config: PPOConfig, template: Template, *, iterations: int) -> WeightedRewards:
    """The rewards of `config.reward`; `template` is the actor's. Raises ModelError if a model cannot be loaded."""
    parts = []
    for reward in config.rewards:
        model = None
        if not reward.is_called:
            name = config.reward_model if reward.kind == TRAINED else reward.target
            tokenizer = load_tokenizer(name, trust_remote_code=config.trust_remote_code, own_template=True)
            same = same_tokens(template, Template(tokenizer))
            model = load_reward(config, name, tokenizer, same_tokenizer=same, is_any=reward.kind == "model")
        parts.append(Part(reward.name, reward.weight, model))
    functions = Functions(config.rewards, seconds=config.reward_timeout)
    return WeightedRewards(parts, functions, clip=config.score_clip, iterations=iterations)
