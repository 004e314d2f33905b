"""The four roles: actor and critic are trained, reference and reward model are only run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf import console
from rlhf.errors import ConfigError
from rlhf.models.causal_model import CausalModel, TokenLogprobs
from rlhf.models.loading import dtype_of, load_causal_lm, load_tokenizer
from rlhf.models.lora import adapters_off, attach, is_adapted
from rlhf.models.scalar_model import ScalarModel, load_scalar_model, score_affine, values_at
from rlhf.models.tensors import pad_right
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.compiling import compile_layers
from rlhf.training.engine import (
    TrainEngine,
    build_frozen,
    default_zero_stage,
    enable_activation_checkpointing,
    zero3_config,
)
from rlhf.training.zero_internals import full_numel
from step3_ppo.config import PPOConfig
from step3_ppo.hybrid.engine import HybridEngine
from step3_ppo.rewards.function import Scorer
from step3_ppo.rollout import Rollout, SequenceBatch


@dataclass
class Actor:
    """The policy, and through it the reference when it is trained by adapters."""

    engine: TrainEngine
    hybrid: HybridEngine
    tokenizer: Any
    template: Template
    temperature: float
    min_response_length: int
    reference: Any  # None: the actor with its adapters off

    def scores(self, batch: SequenceBatch, *, with_entropy: bool = False) -> TokenLogprobs:
        """Log-probabilities (and entropy) of the batch's response tokens under the weights as they are."""
        return self._scores(self.engine, batch, with_entropy=with_entropy)

    def ref_logprobs(self, batch: SequenceBatch) -> Tensor:
        """Log-probabilities of the same tokens under the model that stage 1 left: [N]."""
        if self.reference is not None:
            return self._scores(self.reference, batch).logprobs_N
        with adapters_off(self.engine.module.lm):
            return self._scores(self.engine, batch).logprobs_N

    def _scores(self, model: Any, batch: SequenceBatch, *, with_entropy: bool = False) -> TokenLogprobs:
        device = distributed.device()
        extra: dict[str, Any] = {}
        if self.min_response_length:
            # the end token was masked while sampling below the minimum; so it is in every log-probability
            position = batch.count_BT.int().cumsum(dim=1)
            extra = {
                "forbidden_BT": (batch.count_BT & (position <= self.min_response_length)).to(device),
                "forbidden_ids": (self.template.end_token_id,),
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

    def values(self, batch: SequenceBatch) -> Tensor:
        """V_t for each response token of the batch, [N]: what the critic says before that token, at its predecessor."""
        device = distributed.device()
        head_BT = self.engine(batch.input_ids_BT.to(device))
        return (head_BT[:, :-1][batch.count_BT[:, 1:].to(device)] - self.score_mean) / self.score_std


@dataclass
class RewardModel:
    """The frozen preference scorer, with a tokenizer of its own when that differs from the actor's."""

    model: Any
    template: Template
    pad_token_id: int
    score_mean: float
    score_std: float
    same_tokenizer: bool
    max_length: int

    def scores(self, rollout: Rollout, rows: Sequence[int], batch: SequenceBatch, actor_template: Template) -> Tensor:
        """The head's output at the last counted token of each row: [B]; nothing for no rows."""
        device = distributed.device()
        if self.same_tokenizer:
            ids, last = batch.input_ids_BT, batch.last_B
        else:
            sequences = [self._rendered(rollout, row, actor_template) for row in rows] or [[self.pad_token_id]]
            ids, last = pad_right(sequences, self.pad_token_id), torch.tensor([len(s) - 1 for s in sequences])
        return values_at(self.model(ids.to(device)), last.to(device))[: len(rows)]

    def _rendered(self, rollout: Rollout, row: int, actor_template: Template) -> list[int]:
        """The conversation in this model's own tokens; its end token only where a stop token ended the response."""
        import json

        text = actor_template.text(rollout.responses[row])
        stopped = bool(rollout.stopped_B[row])
        ids = self.template.prompt_ids(json.loads(rollout.messages[row])) + self.template.response_ids(
            text, end=stopped
        )
        return ids[-self.max_length :]


@dataclass
class Roles:
    actor: Actor
    critic: Critic
    reward: Scorer


def build_roles(config: PPOConfig, *, optimizer_steps: int, reward: Scorer | None = None) -> Roles:
    """Load the four roles; `optimizer_steps` is the length of the learning rate schedules. A `reward` of your own (a
    `RewardFunction`, say) takes the reward model's place: then `config.reward_model` is only what a critic starts from.
    """
    dtype = dtype_of(config.dtype)
    tokenizer = load_tokenizer(config.actor_model, trust_remote_code=config.trust_remote_code)
    if reward is not None and not config.reward_model and config.critic_from == "reward":
        raise ConfigError(
            "step3_ppo.critic_from=reward: with a reward function there is no reward model that the critic could start "
            "from; use critic_from=actor"
        )
    template, same = Template(tokenizer), True
    if config.reward_model:
        of_reward = load_tokenizer(config.reward_model, trust_remote_code=config.trust_remote_code)
        same = _same_tokens(template, Template(of_reward))
    if not same and config.critic_from == "reward":
        raise ConfigError(
            "step3_ppo.critic_from=reward: actor and reward model have different tokenizers or templates, and a critic "
            "must read the actor's tokens; use --critic-from actor"
        )
    actor = _build_actor(config, dtype, tokenizer, template, optimizer_steps)
    critic = _build_critic(config, dtype, tokenizer, optimizer_steps)
    scorer = _load_reward_model(config, dtype, same_tokenizer=same) if reward is None else reward
    if config.compile:
        frozen = (
            (actor.reference, config.reference_zero_stage),
            (getattr(scorer, "model", None), config.reward_zero_stage),
        )
        for model, zero_stage in frozen:
            if isinstance(model, nn.Module) and zero_stage == 0:
                compile_layers(model)
    if config.reuse_forward:  # more memory than a step needs has been in use before it
        actor.engine.keep_freed_memory()
        critic.engine.keep_freed_memory()
    tokens = "tokenizers agree" if same else "tokenizers differ: scores are computed on rendered text"
    console.say(
        f"roles: actor {_size(actor.engine.module)}; reference "
        f"{'is the actor with adapters off' if actor.reference is None else 'a frozen copy'}; critic "
        f"{_size(critic.engine.module)}; {tokens if reward is None else 'a reward of your own'}"
    )
    return Roles(actor, critic, scorer)


def _load_reward_model(config: PPOConfig, dtype: torch.dtype, *, same_tokenizer: bool) -> RewardModel:
    tokenizer = load_tokenizer(config.reward_model, trust_remote_code=config.trust_remote_code)
    model = load_scalar_model(
        config.reward_model,
        tokenizer=tokenizer,
        dtype=dtype,
        zero_config=zero3_config(config.reward_zero_stage, dtype),
        no_dropout=True,
        trust_remote_code=config.trust_remote_code,
    )
    mean, std = score_affine(model.config)
    return RewardModel(
        model=build_frozen(ScalarModel(model), zero_stage=config.reward_zero_stage, dtype=dtype),
        template=Template(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        score_mean=mean,
        score_std=std,
        same_tokenizer=same_tokenizer,
        max_length=config.max_prompt_length + config.max_response_length,
    )


def _build_actor(config: PPOConfig, dtype: torch.dtype, tokenizer: Any, template: Template, steps: int) -> Actor:
    zero_stage = default_zero_stage() if config.actor_zero_stage is None else config.actor_zero_stage

    def load(stage: int) -> Any:
        return load_causal_lm(
            config.actor_model,
            tokenizer=tokenizer,
            dtype=dtype,
            zero_config=zero3_config(stage, dtype),
            no_dropout=True,
            trust_remote_code=config.trust_remote_code,
        )

    lm = load(zero_stage)
    if config.activation_checkpointing:
        enable_activation_checkpointing(lm)
    lm = attach(lm, config, dropout=0.0)
    reference = None
    if not is_adapted(lm):
        frozen = CausalModel(load(config.reference_zero_stage))
        reference = build_frozen(frozen, zero_stage=config.reference_zero_stage, dtype=dtype)
    engine = TrainEngine(
        CausalModel(lm),
        config,
        learning_rate=config.lora_learning_rate if config.lora_rank else config.actor_learning_rate,
        total_steps=steps,
        zero_stage=zero_stage,
        dtype=dtype,
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
        ),
        tokenizer=tokenizer,
        template=template,
        temperature=config.temperature,
        min_response_length=config.min_response_length,
        reference=reference,
    )


def _build_critic(config: PPOConfig, dtype: torch.dtype, tokenizer: Any, steps: int) -> Critic:
    zero_stage = default_zero_stage() if config.critic_zero_stage is None else config.critic_zero_stage
    from_reward = config.critic_from == "reward"
    model = load_scalar_model(
        config.reward_model if from_reward else config.actor_model,
        tokenizer=tokenizer,
        dtype=dtype,
        zero_config=zero3_config(zero_stage, dtype),
        new_head=not from_reward,
        no_dropout=True,
        trust_remote_code=config.trust_remote_code,
        seed=config.seed,
    )
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    mean, std = score_affine(model.config) if from_reward else (0.0, 1.0)
    model.config.score_mean, model.config.score_std = mean, std
    engine = TrainEngine(
        ScalarModel(model),
        config,
        learning_rate=config.critic_learning_rate,
        total_steps=steps,
        zero_stage=zero_stage,
        dtype=dtype,
        micro_batch_size=config.micro_batch_size,
        where="step3_ppo (critic)",
    )
    return Critic(engine, mean, std, tokenizer)


def _same_tokens(left: Template, right: Template) -> bool:
    """Whether both render and tokenise alike, so that one sequence of ids serves both models."""
    if left.tokenizer.get_vocab() != right.tokenizer.get_vocab() or left.end_token_id != right.end_token_id:
        return False
    probe: Any = [{"role": "user", "content": "Is 2+2 = 4?\n"}]
    return left.prompt_ids(probe) == right.prompt_ids(probe) and left.response_ids("Yes.") == right.response_ids("Yes.")


def _size(model: Any) -> str:
    count = sum(full_numel(p) for p in model.parameters())
    trained = sum(full_numel(p) for p in model.parameters() if p.requires_grad)
    return f"{count / 1e6:.1f}M weights" + (f" ({trained / 1e6:.2f}M trained)" if trained != count else "")
