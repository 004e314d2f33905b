"""The roles: actor and critic are trained, reference and reward model are only run. Most estimators need no critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf import console
from rlhf.errors import ConfigError
from rlhf.models.causal_model import CausalModel, TokenLogprobs
from rlhf.models.end_tokens import listed
from rlhf.models.loading import Loading, load_causal_lm, load_tokenizer, unwrap
from rlhf.models.lora import adapters_off, attach, is_adapted
from rlhf.models.reward_model import same_tokens
from rlhf.models.scalar_model import ScalarModel, load_scalar_model, score_affine
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.compiling import compile_layers
from rlhf.training.engine import TrainEngine, build_frozen, enable_activation_checkpointing
from rlhf.training.zero_internals import full_numel
from step3_ppo.config import OTHER_TOKENS, PPOConfig
from step3_ppo.hybrid.engine import HybridEngine
from step3_ppo.rewards.function import Scorer
from step3_ppo.rewards.loading import load_reward, load_rewards
from step3_ppo.rollout import SequenceBatch


@dataclass
class Actor:
    """The policy. If it is trained by adapters, it is also the reference, with its adapters off.

    `hybrid` generates with the policy's weights. `end_ids` are the tokens that end a response. `temperature` and
    `min_response_length` (in tokens) are those of the sampling: they are part of every log-probability.
    """

    engine: TrainEngine
    hybrid: HybridEngine
    tokenizer: Any
    template: Template
    end_ids: tuple[int, ...]
    temperature: float
    min_response_length: int
    reference: Any  # None: the actor with its adapters off

    def logprobs(self, batch: SequenceBatch, *, with_entropy: bool = False) -> TokenLogprobs:
        """Log-probabilities (and entropy) [N] of the batch's response tokens under the current weights, in nats."""
        return self._logprobs(self.engine, batch, with_entropy=with_entropy)

    def ref_logprobs(self, batch: SequenceBatch) -> Tensor:
        """Log-probabilities [N] of the same tokens under the model of stage 1, in nats."""
        if self.reference is not None:
            return self._logprobs(self.reference, batch).logprobs_N
        with adapters_off(self.engine.module.lm):
            return self._logprobs(self.engine, batch).logprobs_N

    def _logprobs(self, model: Any, batch: SequenceBatch, *, with_entropy: bool = False) -> TokenLogprobs:
        device = distributed.device()
        extra: dict[str, Any] = {}
        if self.min_response_length:
            # sampling masks the end tokens below the minimum, so every log-probability does the same
            position = batch.count_BT.int().cumsum(dim=1)
            extra = {
                "forbidden_BT": (batch.count_BT & (position <= self.min_response_length)).to(device),
                "forbidden_ids": self.end_ids,
            }
        return model(
            batch.input_ids_BT.to(device),
            batch.count_BT.to(device),
            temperature=self.temperature,
            with_entropy=with_entropy,
            **extra,
        )


@dataclass
class Critic:
    """The value network. Its values are (head − score_mean) / score_std, so they are in units of the scores."""

    engine: TrainEngine
    score_mean: float
    score_std: float
    tokenizer: Any
    from_reward: bool = False  # whether it started from the reward model, whose scale it shares

    def values(self, batch: SequenceBatch) -> Tensor:
        """V_t for each response token of the batch, [N]: the critic's value before that token, at its predecessor."""
        device = distributed.device()
        head_BT = self.engine(batch.input_ids_BT.to(device))
        return (head_BT[:, :-1][batch.count_BT[:, 1:].to(device)] - self.score_mean) / self.score_std


@dataclass
class Roles:
    """All of them. The reference is part of the actor; `critic` is None for an estimator without one; `reward` is a
    reward model or a reward of the user's own."""

    actor: Actor
    critic: Critic | None
    reward: Scorer

    @property
    def engines(self) -> dict[str, TrainEngine]:
        """The engines that are trained, by role."""
        critic = {"critic": self.critic.engine} if self.critic is not None else {}
        return {"actor": self.actor.engine, **critic}

    @property
    def skipped_steps(self) -> int:
        """Optimiser steps of actor and critic that were not applied, since the run began."""
        return sum(engine.steps_skipped for engine in self.engines.values())


def build_roles(
    config: PPOConfig, *, optimizer_steps: int, tokenizer: Any = None, reward: Scorer | None = None
) -> Roles:
    """Load the roles that the estimator needs; `optimizer_steps` is the length of the learning rate schedules.

    `tokenizer` is the actor's, if the caller has already loaded it. A `reward` of your own (a `RewardFunction`, say)
    replaces the reward model and what `config.reward` names; `config.reward_model` then only serves as the critic's
    start. Raises ConfigError if the critic cannot start from the chosen model, ModelError if a model cannot be loaded.
    """
    if reward is not None and not config.reward_model and config.critic_from == "reward":
        raise ConfigError(
            "step3_ppo.critic_from=reward: with a reward function there is no reward model that the critic could start "
            "from; use critic_from=actor"
        )
    trusted = config.trust_remote_code
    tokenizer = load_tokenizer(config.actor_model, trust_remote_code=trusted) if tokenizer is None else tokenizer
    template, of_reward, same = Template(tokenizer), None, True
    if config.reward_model or (reward is None and config.needs_reward_model):
        of_reward = load_tokenizer(config.reward_model, trust_remote_code=trusted)
        same = same_tokens(template, Template(of_reward))
    if not same and config.critic_from == "reward":
        raise ConfigError(OTHER_TOKENS)
    from_reward = config.critic_from == "reward" or (config.critic_from == "auto" and of_reward is not None and same)
    actor = _build_actor(config, tokenizer, template, optimizer_steps)
    critic = None
    if config.estimator.has_critic:
        critic = _build_critic(config, tokenizer, optimizer_steps, from_reward=from_reward)
    trained = f"no critic ({config.advantage_estimator})"
    if critic is not None:
        trained = f"critic {_size(critic.engine.module)}, from the {'reward model' if from_reward else 'actor'}"
    tokens = "tokenizers agree" if same else "tokenizers differ: scores are computed on rendered text"
    if reward is None and config.reward:
        iterations = optimizer_steps * config.mini_batch_size // (config.ppo_epochs * config.rollout_batch_size)
        scorer: Scorer = load_rewards(config, template, iterations=max(iterations, 1))
        tokens = f"rewards: {', '.join(scorer.names)}"
    else:
        scorer = load_reward(config, config.reward_model, of_reward, same_tokenizer=same) if reward is None else reward
    console.say(
        f"roles: actor {_size(actor.engine.module)}; reference "
        f"{'is the actor with adapters off' if actor.reference is None else 'a frozen copy'}; {trained}; "
        f"{tokens if reward is None else 'a reward of your own'}"
    )
    return Roles(actor, critic, scorer)


def _build_actor(config: PPOConfig, tokenizer: Any, template: Template, steps: int) -> Actor:
    loading = Loading.of(config, config.actor_model, tokenizer, role="actor", no_dropout=True)
    lm: Any = load_causal_lm(loading)
    if config.activation_checkpointing:
        enable_activation_checkpointing(lm)
    lm = attach(lm, config, dropout=0.0)
    reference = None
    if not is_adapted(lm):
        of_reference = Loading.of(config, config.actor_model, tokenizer, role="reference", no_dropout=True)
        frozen = CausalModel(load_causal_lm(of_reference))
        reference = build_frozen(frozen, zero_stage=of_reference.zero_stage, dtype=of_reference.dtype)
        if config.compile and of_reference.zero_stage == 0:
            compile_layers(reference)
    engine = TrainEngine(
        CausalModel(lm),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.actor_learning_rate,
        total_steps=steps,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step3_ppo (actor)",
    )
    return Actor(
        engine=engine,
        hybrid=HybridEngine(
            engine,
            pad_token_id=tokenizer.pad_token_id,
            tensor_parallel=config.inference_tp_size,
            inference_dtype=config.inference_dtype,
            inference_copy=config.inference_copy,
            release=config.release_inference_cache,
            compiled=config.inference_compile,
            graphs=config.inference_cuda_graphs,
        ),
        tokenizer=tokenizer,
        template=template,
        end_ids=tuple(listed(unwrap(engine.module.lm).generation_config)),
        temperature=config.temperature,
        min_response_length=config.min_response_length,
        reference=reference,
    )


def _build_critic(config: PPOConfig, tokenizer: Any, steps: int, *, from_reward: bool) -> Critic:
    name = config.reward_model if from_reward else config.actor_model
    loading = Loading.of(config, name, tokenizer, role="critic", no_dropout=True)
    model: Any = load_scalar_model(loading, new_head=not from_reward, seed=config.seed)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    mean, std = (score_affine(model.config) if from_reward else None) or (0.0, 1.0)
    model.config.score_mean, model.config.score_std = mean, std
    engine = TrainEngine(
        ScalarModel(model),
        config,
        learning_rate=config.critic_learning_rate,
        total_steps=steps,
        zero_stage=loading.zero_stage,
        dtype=loading.dtype,
        micro_batch_size=config.micro_batch_size,
        where="step3_ppo (critic)",
    )
    return Critic(engine, mean, std, tokenizer, from_reward)


def _size(model: Any) -> str:
    count = sum(full_numel(p) for p in model.parameters())
    trained = sum(full_numel(p) for p in model.parameters() if p.requires_grad)
    return f"{count / 1e6:.1f}M weights" + (f" ({trained / 1e6:.2f}M trained)" if trained != count else "")
