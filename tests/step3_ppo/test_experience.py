"""What is measured of a fixed rollout: against transformers' own outputs, one unpadded sequence at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.models.tensors import whiten
from rlhf.template import Template
from step3_ppo.advantages import estimate_advantages
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Experience, rollout_metrics
from step3_ppo.passes import ForwardPasses
from step3_ppo.rewards.model import ModelReward
from step3_ppo.roles import Roles
from step3_ppo.rollout import Rollout, sequence_batch
from tests.helpers import ppo
from tests.helpers.tiny import tiny_tokenizer

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]
KL_COEF = 0.3
TABLES = ("old_logprobs_BR", "ref_logprobs_BR", "values_BR", "kl_BR", "rewards_BR", "advantages_BR", "returns_BR")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ppo.save_models(tmp_path_factory.mktemp("models"))


def measured(models: dict[str, str], **changes: Any) -> Experience:
    settings = ppo.config(models, **changes)
    return experience_of(ppo.rollout(), ppo.roles(settings), settings)


def experience_of(rollout: Rollout, roles: Roles, settings: PPOConfig) -> Experience:
    measured = ForwardPasses(roles, settings).measure(rollout, 0)
    return ppo.learnable(measured, roles.reward, settings, kl_coef=KL_COEF)


@pytest.fixture(scope="module")
def experience(models: dict[str, str]) -> Experience:
    return measured(models, micro_batch_size=3)


@pytest.fixture(scope="module")
def plain(models: dict[str, str]) -> dict[str, Any]:
    """Log-probabilities, entropy, values and scores of every row, by transformers alone."""
    actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
    reward: Any = AutoModelForSequenceClassification.from_pretrained(models["reward_model"])
    fixed = ppo.rollout()
    with torch.no_grad():
        pairs = [ppo.plain_logprobs(actor, fixed, row) for row in range(8)]
        return {
            "logprobs": [logprobs for logprobs, _ in pairs],
            "entropy": [entropy for _, entropy in pairs],
            "values": [ppo.plain_values(reward, fixed, row) for row in range(8)],
            "scores": torch.cat([reward(input_ids=ppo.sequence(fixed, row)[0]).logits[:, 0] for row in range(8)]),
        }


def rows_of(table: Tensor) -> list[Tensor]:
    return [ppo.flat(table, ppo.rollout(), row) for row in range(8)]


def test_four_roles_measure_what_transformers_does(experience: Experience, plain: dict[str, Any]) -> None:
    for table, name in (
        (experience.old_logprobs_BR, "logprobs"),
        (experience.ref_logprobs_BR, "logprobs"),  # actor and reference are the same model before training
        (experience.entropy_BR, "entropy"),
        (experience.values_BR, "values"),
    ):
        assert table is not None
        torch.testing.assert_close(rows_of(table), plain[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(experience.scores_B, plain["scores"], rtol=1e-4, atol=1e-5)


def test_final_scores_by_hand(experience: Experience, plain: dict[str, Any]) -> None:
    """(score − 0.25)/0.5 clipped to ±5, and 1 off for rows 0, 3 and 6, which did not stop."""
    wanted = ((plain["scores"] - 0.25) / 0.5).clamp(-5, 5)
    wanted -= torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0])
    torch.testing.assert_close(experience.final_scores_B, wanted, rtol=1e-4, atol=1e-4)


def test_clip_and_penalty_are_the_settings(models: dict[str, str], plain: dict[str, Any]) -> None:
    tight = measured(models, score_clip=0.1, missing_eos_penalty=0.0)
    assert tight.final_scores_B.abs().max() <= 0.1
    torch.testing.assert_close(tight.final_scores_B, ((plain["scores"] - 0.25) / 0.5).clamp(-0.1, 0.1))


def test_rewards_and_advantages_follow(experience: Experience) -> None:
    """No KL yet: each row's only reward is its score at its last token; advantages are whitened over all counted."""
    e = experience
    mask = e.response_mask_BR
    assert e.kl_BR.abs().max() < 1e-5
    for row, rewards in enumerate(rows_of(e.rewards_BR)):
        assert float(rewards[-1]) == pytest.approx(float(e.final_scores_B[row]), abs=1e-4)
        assert rewards[:-1].abs().sum() < 1e-4
    assert e.values_BR is not None
    raw, returns = estimate_advantages(e.values_BR, e.rewards_BR, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(e.returns_BR, returns)
    assert float(e.advantages_BR[mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(e.advantages_BR[mask].std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(e.advantages_BR, whiten(raw, mask))


def test_whitened_rewards_enter_the_advantages(models: dict[str, str], experience: Experience) -> None:
    e = measured(models, whiten_rewards=True)
    mask = e.response_mask_BR
    torch.testing.assert_close(e.rewards_BR, whiten(experience.rewards_BR, mask, keep_mean=True), rtol=1e-3, atol=1e-4)
    assert float(e.rewards_BR[mask].var(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    assert e.rewards_BR[~mask].abs().sum() == 0


@pytest.mark.parametrize("name", TABLES)
def test_nothing_stands_where_nothing_counts(experience: Experience, name: str) -> None:
    assert getattr(experience, name)[~experience.response_mask_BR].abs().sum() == 0


def test_metrics_by_hand(experience: Experience, plain: dict[str, Any]) -> None:
    found = rollout_metrics(experience)
    assert found["ppo/response_length"] == 29 / 8  # 1 + 4 + 7 + 3 + 6 + 2 + 5 + 1
    assert found["ppo/eos_rate"] == 5 / 8
    assert found["ppo/scores_mean"] == pytest.approx(float(plain["scores"].mean()), abs=1e-5)
    assert found["ppo/entropy"] == pytest.approx(float(torch.cat(plain["entropy"]).mean()), rel=1e-4)
    assert found["ppo/kl"] == pytest.approx(0.0, abs=1e-4)
    # the rollout says that its sampler had probability 1 for every token
    wanted = 1 - float(torch.cat(plain["logprobs"]).exp().mean())
    assert found["ppo/sampler_mismatch"] == pytest.approx(wanted, rel=1e-4)


def test_temperature_is_in_every_log_probability(models: dict[str, str]) -> None:
    e = measured(models, temperature=0.5)
    actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
    with torch.no_grad():
        wanted = [ppo.plain_logprobs(actor, ppo.rollout(), row, temperature=0.5)[0] for row in range(8)]
    torch.testing.assert_close(rows_of(e.old_logprobs_BR), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(e.ref_logprobs_BR, e.old_logprobs_BR)


def test_minimum_length_is_in_every_log_probability(models: dict[str, str], plain: dict[str, Any]) -> None:
    """The end token is out of the first two positions' softmax: p / (1 − p_end), for actor and reference alike."""
    e = measured(models, min_response_length=2)
    actor: Any = AutoModelForCausalLM.from_pretrained(models["actor_model"])
    fixed = ppo.rollout()
    for row in range(8):
        ids, where = ppo.sequence(fixed, row)
        with torch.no_grad():
            end = actor(input_ids=ids).logits[0].log_softmax(-1)[where][:, 2].exp()
        wanted = plain["logprobs"][row].clone()
        wanted[:2] -= (1 - end[:2]).log()
        kept = torch.tensor(fixed.responses[row][:2]) != 2  # a fixed response that ends earlier could not be drawn
        found, ref = ppo.flat(e.old_logprobs_BR, fixed, row), ppo.flat(e.ref_logprobs_BR, fixed, row)
        torch.testing.assert_close(found[: len(kept)][kept], wanted[: len(kept)][kept], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[2:], wanted[2:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[2:], ref[2:])


def test_reference_by_adapters_off_is_a_frozen_copy(models: dict[str, str], experience: Experience) -> None:
    """After the adapters have moved, the reference still says what the untouched model does."""
    for zero_stage in (1, 3):
        settings = ppo.config(models, lora_rank=2, actor_zero_stage=zero_stage)
        roles = ppo.roles(settings)
        assert roles.actor.reference is None
        with torch.no_grad():
            for name, parameter in roles.actor.engine.module.lm.named_parameters():
                if "lora_B" in name and zero_stage == 1:
                    parameter.normal_(std=0.5)
        e = experience_of(ppo.rollout(), roles, settings)
        torch.testing.assert_close(e.ref_logprobs_BR, experience.ref_logprobs_BR, rtol=1e-5, atol=1e-5)
        if zero_stage == 1:
            assert (e.old_logprobs_BR - e.ref_logprobs_BR).abs().max() > 0.1


def test_another_tokenizer_scores_the_rendered_text(models: dict[str, str], tmp_path: Path) -> None:
    """The reward model reads its own ids of the text, and its own end token only where the response has ended."""
    other = ppo.save_reward_model(tmp_path / "other")
    tiny_tokenizer(pad=None).save_pretrained(other)  # the same bytes under other numbers
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    questions, answers = ["Why?", "Is it so?"], [" Yes.", " no"]
    rollout = Rollout(
        prompts=[ids(f"Human: {q}\n\nAssistant:") for q in questions],
        responses=[[*ids(answers[0]), 2], ids(answers[1])],
        sampler_logprobs=[[0.0] * 6, [0.0] * 3],
        stopped_B=torch.tensor([True, False]),
        messages=[json.dumps([{"role": "user", "content": q}]) for q in questions],
    )
    settings = ppo.config({**models, "reward_model": str(other)}, critic_from="actor", max_prompt_length=64)
    e = experience_of(rollout, ppo.roles(settings), settings)
    model: Any = AutoModelForSequenceClassification.from_pretrained(other)
    own = tiny_tokenizer(pad=None)
    for row, text in enumerate(("Human: Why?\n\nAssistant: Yes.</s>", "Human: Is it so?\n\nAssistant: no")):
        with torch.no_grad():
            wanted = float(model(input_ids=torch.tensor([own(text, add_special_tokens=False)["input_ids"]])).logits)
        assert float(e.scores_B[row]) == pytest.approx(wanted, abs=1e-5)


def test_no_rows_are_a_row_of_padding() -> None:
    batch = sequence_batch(ppo.rollout(), [], pad_token_id=0)
    assert batch.input_ids_BT.tolist() == [[0, 0]]
    assert not batch.count_BT.any()


def test_sequences_are_joined_and_counted() -> None:
    rollout = Rollout([[5, 6], [7]], [[8, 2], [9]], [[0.0] * 2, [0.0]], torch.tensor([True, False]), ["", ""])
    batch = sequence_batch(rollout, [1, 0], pad_token_id=0)
    assert batch.input_ids_BT.tolist() == [[7, 9, 0, 0], [5, 6, 8, 2]]
    assert batch.count_BT.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]
    assert batch.last_B.tolist() == [1, 3]
    assert rollout.response_mask_BR.tolist() == [[True, True], [True, False]]
    assert rollout.lengths == [4, 2]


def _on_ranks(models: dict[str, str]) -> dict[str, Tensor]:
    frozen: dict[str, Any] = {f"{role}_zero_stage": 3 for role in ("actor", "critic", "reference", "reward")}
    e = measured(models, micro_batch_size=3, **frozen)  # 8 rows in 4 micro-batches of 2
    return {name: getattr(e, name) for name in (*TABLES, "scores_B", "final_scores_B", "entropy_BR")}


def test_every_rank_holds_the_same_experience(
    run_ranks: Callable[..., list[Any]], models: dict[str, str], experience: Experience
) -> None:
    """Two ranks with all four roles sharded measure what one rank does."""
    for tables in run_ranks(_on_ranks, models):
        for name, table in tables.items():
            torch.testing.assert_close(
                table, getattr(experience, name), rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_templates_agree_or_differ(models: dict[str, str]) -> None:
    """The same tokenizer in two folders is one tokenizer: no text is rendered."""
    roles = ppo.roles(ppo.config(models))
    assert isinstance(roles.reward, ModelReward)
    assert roles.reward.same_tokenizer
    assert isinstance(roles.actor.template, Template)
