"""The stages' own numbers, and that ranks, ZeRO stages and micro-batches change none of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data.config import DataSettings
from data.stage_data import demonstrations, preferences
from rlhf.errors import ConfigError
from rlhf.hardware import ONE_RANK
from rlhf.metrics import read_metrics
from rlhf.template import Template
from step3_ppo.config import PPOConfig
from step3_ppo.ema import EMA
from step3_ppo.rollout_files import read_rollouts
from step3_ppo.spec import problems
from tests.helpers import engines, stages
from tests.helpers.ppo import SCORE_MEAN, SCORE_STD, save_reward_model
from tests.helpers.tiny import FAMILIES, tiny_tokenizer

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.slow]
Folders = dict[str, Path]
PPO: dict[str, Any] = {**stages.RATES, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return stages.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def one(inputs: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages on one rank at ZeRO-1."""
    output = tmp_path_factory.mktemp("one")
    stages.all_stages(output, inputs, 1)
    return output


@pytest.mark.parametrize("zero_stage, micro_batch_size", [(0, 4), (2, 1), (3, 2)])
def test_zero_and_micro_batches_change_nothing(
    zero_stage: int, micro_batch_size: int, one: Path, inputs: Folders, tmp_path: Path
) -> None:
    stages.all_stages(tmp_path, inputs, zero_stage, micro_batch_size=micro_batch_size)
    stages.assert_same_run(tmp_path, one)


def _two_ranks(output: Path, inputs: Folders) -> None:
    for zero_stage in (1, 3):
        stages.all_stages(output / f"zero{zero_stage}", inputs, zero_stage)


def test_two_ranks_leave_what_one_leaves(
    run_ranks: Callable[..., list[Any]], one: Path, inputs: Folders, tmp_path: Path
) -> None:
    """Every export of every stage, ZeRO-1 and ZeRO-3, and every figure on the way."""
    run_ranks(_two_ranks, tmp_path, inputs)
    for zero_stage in (1, 3):
        stages.assert_same_run(tmp_path / f"zero{zero_stage}", one)


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def data_settings(inputs: Folders) -> DataSettings:
    known = {k: v for k, v in stages.BATCHES.items() if k in DataSettings.model_fields}
    return DataSettings(data_path=[str(inputs["pairs"])], **known)


def mean_loss(model: Any, rows: Any) -> float:
    """Mean cross-entropy over response tokens, one row at a time."""
    total = count = 0.0
    for row in (rows[i] for i in range(len(rows))):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        taken = logprobs.gather(1, ids[0, 1:, None])[row["prompt_length"] - 1 :]
        total, count = total - float(taken.sum()), count + len(taken)
    return total / count


def test_perplexity_is_that_of_the_exported_model(one: Path, inputs: Folders) -> None:
    """exp(mean loss over all held-out counted tokens), before on the base model and after on the export."""
    rows = demonstrations(data_settings(inputs), Template(AutoTokenizer.from_pretrained(one / "sft/model"))).held_out
    metrics = read_metrics(one / "sft/metrics.jsonl")
    for folder, row in ((inputs["base"], metrics[0]), (one / "sft/model", metrics[-1])):
        wanted = math.exp(mean_loss(AutoModelForCausalLM.from_pretrained(folder), rows))
        assert row["sft/perplexity"] == pytest.approx(wanted, rel=1e-4)


# --- stage 2 ----------------------------------------------------------------------------------------------------------


def test_reward_figures_are_those_of_the_exported_model(one: Path, inputs: Folders) -> None:
    """Scores of held-out pairs by transformers' own pooled logit give accuracy, margin, score_mean and score_std."""
    folder = one / "reward/model"
    rows = preferences(data_settings(inputs), Template(AutoTokenizer.from_pretrained(folder))).held_out
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    scores = {"chosen_ids": [], "rejected_ids": []}
    for index in range(len(rows)):
        for kind, values in scores.items():
            with torch.no_grad():
                ids = torch.tensor([rows[index]["prompt_ids"] + rows[index][kind]])
                values.append(float(model(input_ids=ids).logits))
    chosen, rejected = torch.tensor(scores["chosen_ids"]), torch.tensor(scores["rejected_ids"])
    last = read_metrics(one / "reward/metrics.jsonl")[-1]
    assert last["reward/accuracy"] == pytest.approx(float((chosen > rejected).float().mean()))
    assert last["reward/margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-5)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["score_mean"] == pytest.approx(float(chosen.mean()), abs=1e-5)
    assert saved["score_std"] == pytest.approx(float(chosen.std(unbiased=False)), abs=1e-5)


# --- stage 3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_stage, lora_rank", [(0, 0), (1, 0), (2, 2), (3, 0), (3, 2)])
def test_moving_average_by_hand(zero_stage: int, lora_rank: int, inputs: Folders, tmp_path: Path) -> None:
    """θ_ema is worked out beside the run from the whole weights after each step, and is what actor_ema/ holds.

    Under LoRA the adapters' factors are averaged, then merged.
    """
    decay, averages = PPO["ema_decay"], {}
    original = EMA.update

    def update(self: Any) -> None:
        now = engines.weights(cast(Any, self).train)
        for name, value in now.items():
            averages[name] = decay * averages[name] + (1 - decay) * value
        original(self)

    def start(self: Any, engine: Any, *, decay: float) -> None:
        created(self, engine, decay=decay)
        self.train = engine
        averages.update(engines.weights(engine))

    created = EMA.__init__
    with mock.patch.object(EMA, "update", update), mock.patch.object(EMA, "__init__", start):
        stages.ppo(
            tmp_path, inputs["base"], inputs["reward"], str(inputs["pairs"]), **PPO,
            actor_zero_stage=zero_stage, lora_rank=lora_rank, lora_learning_rate=1e-2, ppo_epochs=2,
        )  # fmt: skip
    saved = load_file(tmp_path / "actor_ema/model.safetensors")
    wanted = merged(averages) if lora_rank else averages
    assert engines.furthest(saved, wanted) < 1e-5
    trained = load_file(tmp_path / "actor/model.safetensors")
    assert engines.furthest(saved, trained) > 1e-4


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + (alpha / rank) · B A, by names alone."""
    scaling = 32 / 2
    out = {}
    for name, value in weights.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" not in name:
            out[plain] = value
    for name in weights:
        if ".lora_A." in name:
            plain = name.removeprefix("base_model.model.").partition(".lora_A")[0] + ".weight"
            out[plain] = out[plain] + scaling * weights[name.replace("lora_A", "lora_B")] @ weights[name]
    return out


def save_other_tokenizer(folder: Path) -> Path:
    """A reward model whose tokenizer numbers the bytes differently."""
    save_reward_model(folder)
    tiny_tokenizer(pad=None).save_pretrained(folder)
    return folder


def test_with_another_tokenizer_the_critic_starts_from_the_actor(inputs: Folders, tmp_path: Path) -> None:
    other = save_other_tokenizer(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"different tokenizers or templates.*use --critic-from actor"):
        stages.ppo(tmp_path / "a", inputs["base"], other, str(inputs["pairs"]), critic_from="reward")
    stages.ppo(tmp_path / "b", inputs["base"], other, str(inputs["pairs"]))
    critic, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b/critic", output_loading_info=True)
    assert not info["missing_keys"]
    assert (critic.config.score_mean, critic.config.score_std) == (0.0, 1.0)


def test_the_plan_sees_that_a_critic_cannot_read_the_actors_tokens(inputs: Folders, tmp_path: Path) -> None:
    names = {"actor_model": str(inputs["base"]), "reward_model": str(save_other_tokenizer(tmp_path / "other"))}
    models = {setting: json.loads((Path(name) / "config.json").read_text()) for setting, name in names.items()}
    for critic_from, told in (("reward", True), ("auto", False)):
        config = PPOConfig(**names, critic_from=critic_from, data_path=[str(inputs["pairs"])], force=True)  # type: ignore[arg-type]
        found = problems(config, models, ONE_RANK)
        assert any("different tokenizers" in line for line in found) == told, found


@pytest.mark.parametrize("pad, zero_stage", [(None, 3), ("</s>", 1)])
def test_a_tokenizer_without_a_pad_of_its_own_gets_one(
    pad: str | None, zero_stage: int, inputs: Folders, tmp_path: Path
) -> None:
    """A full vocabulary and no spare token, as GPT-2 has: embeddings grow to a multiple of 64, in every stage the same.

    Under ZeRO-3 transformers could not read the size of the sharded embedding; and a random new row is likelier than
    all others where logits lie far below zero.
    """
    config = FAMILIES["gpt2"]()
    config.vocab_size, config.pad_token_id = len(tiny_tokenizer(pad)), None
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer(pad).save_pretrained(tmp_path / "base")
    pairs = str(inputs["pairs"])
    zero: dict[str, Any] = {f"{role}_zero_stage": zero_stage for role in ("actor", "critic")}
    with stages.recorded_exports() as seen:
        stages.sft(tmp_path / "sft", tmp_path / "base", pairs, zero_stage=zero_stage)
        stages.reward(tmp_path / "reward", tmp_path / "base", pairs, zero_stage=zero_stage)
        stages.ppo(tmp_path / "ppo", tmp_path / "sft/model", tmp_path / "reward/model", pairs, **zero)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / f) for f in ("sft/model", "reward/model", "ppo/actor")]
    assert {t.pad_token_id for t in tokenizers} == {258}
    assert all(t.pad_token != t.eos_token for t in tokenizers)
    actor: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ppo/actor")
    assert actor.get_input_embeddings().weight.shape[0] == 320
    torch.testing.assert_close(stages.outputs(actor), seen["actor"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_adapters_in_bf16(zero_stage: int, inputs: Folders, tmp_path: Path) -> None:
    """What large models use. peft made fp32 adapters on bf16 weights, and ZeRO-3 failed on the reward model's bf16 head
    beside them."""
    values: dict[str, Any] = {"dtype": "bf16", "lora_rank": 2, "lora_learning_rate": 0.02}
    stages.all_stages(tmp_path, inputs, zero_stage, **values)
    first, last = read_metrics(tmp_path / "ppo/metrics.jsonl")
    assert abs(first["ppo/kl_k1"]) < 2e-2
    assert last["ppo/kl"] != 0.0
    for folder in stages.EXPORTS:
        assert load_file(tmp_path / folder / "model.safetensors").popitem()[1].dtype == torch.bfloat16
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_all_of_ppo_at_once(inputs: Folders, tmp_path: Path) -> None:
    """Every option on, in a run to its end; and the figures that the conventions promise, under their names."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Sentence {i} of plain text. " * 3}) + "\n" for i in range(12)))
    stages.ppo(
        tmp_path / "ppo", inputs["base"], inputs["reward"], str(inputs["pairs"]), iterations=3, mini_batch_size=4,
        responses_per_prompt=2, ppo_epochs=2, rollout_micro_batch_size=3, temperature=0.8, min_response_length=2,
        adaptive_kl_target=1.0, adaptive_kl_horizon=100, whiten_rewards=True, entropy_coef=0.01, early_stop_kl=10.0,
        critic_warmup_iterations=1, missing_eos_penalty=0.5, gamma=0.99, ptx_data=[str(text)], ptx_coef=2.0,
        ptx_length=32, activation_checkpointing=True, **PPO,
    )  # fmt: skip
    rows = read_metrics(tmp_path / "ppo/metrics.jsonl")
    assert len(rows) == 3
    promised = (
        "scores_mean kl kl_coef entropy actor_loss critic_loss ptx_loss clipfrac approx_kl explained_variance "
        "response_length eos_rate advantages_std grad_norm_actor grad_norm_critic"
    )
    for name in promised.split():
        assert math.isfinite(rows[-1][f"ppo/{name}"]), name
    assert "ppo/actor_loss" not in rows[0]  # the critic warms up alone
    assert rows[1]["ppo/kl"] == pytest.approx(0.0, abs=1e-4)  # so the actor has not moved yet
    assert abs(rows[2]["ppo/kl"]) > 1e-4
    # KL 0 is 100% below the target: 1 − 0.2 · 8 / 100
    assert rows[1]["ppo/kl_coef"] == pytest.approx(rows[0]["ppo/kl_coef"] * 0.984)
    assert rows[-1]["ppo/response_length"] >= 2
    assert {"time/generate", "time/score", "time/train", "perf/tokens_per_second"} <= rows[-1].keys()


def test_each_tokenizer_is_loaded_once(inputs: Folders, tmp_path: Path) -> None:
    """Of a large vocabulary it takes seconds; stage 3 loaded the actor's and the reward model's twice each."""
    loaded: list[str] = []

    def load(name: str, **options: Any) -> Any:
        loaded.append(Path(name).name)
        return original(name, **options)

    original = AutoTokenizer.from_pretrained
    with mock.patch.object(AutoTokenizer, "from_pretrained", load):
        stages.ppo(tmp_path, inputs["base"], inputs["reward"], str(inputs["pairs"]), iterations=1)
    assert loaded == ["base", "reward"]


def test_the_loop_of_stage_3_shapes_rewards_and_estimates_advantages(inputs: Folders, tmp_path: Path) -> None:
    """What the rollouts on disk hold of scores, KL and values gives their advantages, worked out token by token."""
    settings = {"kl_coef": 0.2, "gamma": 0.9, "gae_lambda": 0.8, "missing_eos_penalty": 0.5, "score_clip": 0.4}
    stages.ppo(
        tmp_path, inputs["base"], inputs["reward"], str(inputs["pairs"]), save_rollouts_every=1, **PPO, **settings
    )
    rows = read_rollouts(tmp_path / "rollouts" / "iteration-000002.jsonl")
    raw: list[list[float]] = []
    for row in rows:
        score = min(max((row["score"] - SCORE_MEAN) / SCORE_STD, -0.4), 0.4) - (0.0 if row["stopped"] else 0.5)
        assert row["final_score"] == pytest.approx(score, abs=1e-4)
        rewards = [-0.2 * kl for kl in row["kl"]]
        rewards[-1] += score
        advantages, advantage_after, value_after = [], 0.0, 0.0
        for reward, value in zip(reversed(rewards), reversed(row["value"]), strict=True):
            advantage_after = reward + 0.9 * value_after - value + 0.9 * 0.8 * advantage_after
            value_after = value
            advantages.insert(0, advantage_after)
        raw.append(advantages)
    flat = torch.tensor([value for advantages in raw for value in advantages])
    for row, advantages in zip(rows, raw, strict=True):
        whitened = (torch.tensor(advantages) - flat.mean()) / flat.std(unbiased=False)
        torch.testing.assert_close(torch.tensor(row["advantage"]), whitened, rtol=0, atol=2e-3)
