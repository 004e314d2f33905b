"""What is wrong between stage 3's settings: one line each, with a way out; and no option stays silent."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.hardware import Machine
from step1_sft.config import SFTConfig
from step2_dpo.config import DPOConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig
from step3_ppo.spec import SPEC


@pytest.mark.parametrize(
    "values, line",
    [
        (
            {"mini_batch_size": 6, "rollout_batch_size": 32},
            "step3_ppo.mini_batch_size=6 does not divide rollout_batch_size=32; try 2, 4, 8",
        ),
        (
            {"mini_batch_size": 64, "rollout_batch_size": 32},
            "step3_ppo.mini_batch_size=64 does not divide rollout_batch_size=32; try ",
        ),
        (
            {"responses_per_prompt": 5},
            "step3_ppo.responses_per_prompt=5 does not divide rollout_batch_size=64; try ",
        ),
        (
            {"min_response_length": 8, "max_response_length": 8},
            "step3_ppo.min_response_length=8 must be below max_response_length=8",
        ),
        (
            {"inference_copy": "off", "inference_dtype": "bf16"},
            "step3_ppo.inference_dtype is set but inference_copy is off: it has no effect",
        ),
        ({"inference_tp_size": 3}, "step3_ppo.inference_tp_size=3 does not divide the 4 ranks of a node; try 1, 2, 4"),
        ({"inference_dtype": "fp16"}, "step3_ppo.inference_dtype=fp16 needs a GPU"),
        ({"inference_cuda_graphs": True}, "step3_ppo.inference_cuda_graphs needs a GPU; leave it out"),
        (
            {"inference_copy": "off", "actor_zero_stage": 3, "inference_compile": True},
            "step3_ppo.inference_compile: ZeRO-3 gathers weights layer by layer where inference_copy is off; drop one",
        ),
        ({"ptx_coef": 1.0}, "step3_ppo.ptx_coef is set but ptx_data is empty: it has no effect; give --ptx-data"),
        ({"ptx_length": 64}, "step3_ppo.ptx_length is set but ptx_data is empty: it has no effect; give --ptx-data"),
        ({"ema": False, "ema_decay": 0.9}, "step3_ppo.ema_decay is set but ema is off: it has no effect"),
        (
            {"adaptive_kl_horizon": 500},
            "step3_ppo.adaptive_kl_horizon is set but kl_coef is fixed: it has no effect; set adaptive_kl_target",
        ),
        (
            {"lora_learning_rate": 1e-3},
            "step3_ppo.lora_learning_rate is set but lora_rank is 0: it has no effect; set step3_ppo.lora_rank",
        ),
        *(
            (
                {"advantage_estimator": name},
                f"step3_ppo.advantage_estimator={name} compares the responses to one prompt, and responses_per_prompt "
                "is 1; use --responses-per-prompt 4",
            )
            for name in ("rloo", "grpo", "dr_grpo")
        ),
        (
            {"advantage_estimator": "rloo", "responses_per_prompt": 3},
            "step3_ppo.responses_per_prompt=3 does not divide rollout_batch_size=64; try 2, 4, 8",
        ),
        (
            {"advantage_estimator": "grpo", "responses_per_prompt": 8, "mini_batch_size": 4},
            "step3_ppo.mini_batch_size=4 cuts a prompt's responses_per_prompt=8 responses, which grpo keeps in one "
            "step; try 8, 16, 32",
        ),
        *(
            (
                {"advantage_estimator": "reinforce_pp", name: value},
                f"step3_ppo.{name} is set but advantage_estimator is reinforce_pp, which has no critic: it has no "
                "effect; drop one of them",
            )
            for name, value in (
                ("critic_from", "actor"),
                ("critic_learning_rate", 1e-4),
                ("critic_warmup_iterations", 2),
                ("cliprange_value", 0.3),
                ("gamma", 0.9),
                ("gae_lambda", 0.9),
                ("whiten_rewards", True),
            )
        ),
        (
            {"advantage_estimator": "reinforce_pp", "responses_per_prompt": 4, "drop_uniform_groups": True},
            "step3_ppo.drop_uniform_groups is set but advantage_estimator is reinforce_pp, which compares no groups",
        ),
        ({"ratio": "sequence", "loss_mean": "sequence"}, "step3_ppo.ratio=sequence: the advantages of gae differ"),
        (
            {"advantage_estimator": "rloo", "responses_per_prompt": 4, "loss_mean": "token"},
            "step3_ppo.loss_mean=token: with ratio sequence each response has one loss",
        ),
    ],
)
def test_settings_at_odds_are_one_line_with_a_way_out(values: dict[str, Any], line: str) -> None:
    (problem,) = PPOConfig(**values).problems(Machine(ranks=4))
    assert problem.startswith(line)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"inference_tp_size": 2},
        {"inference_copy": "off"},
        {"ptx_data": ["a.txt"], "ptx_coef": 1.0, "ptx_length": 64},
        {"ptx_coef": 0.0},  # off, said aloud
        {"ema": False},
        {"ema_decay": 0.9},
        {"adaptive_kl_target": 6.0, "adaptive_kl_horizon": 500},
        {"lora_rank": 8, "lora_learning_rate": 1e-3, "lora_alpha": 16.0},
        {"rollout_batch_size": 32, "mini_batch_size": 8, "responses_per_prompt": 4},
    ],
)
def test_settings_that_go_together_have_no_problems(values: dict[str, Any]) -> None:
    assert PPOConfig(**values).problems(Machine(ranks=4)) == []


@pytest.mark.parametrize(
    "values, line",
    [
        ({"inference_compile": True}, "step3_ppo.inference_cuda_graphs does not go with inference_compile; drop one"),
        ({"inference_tp_size": 2}, "step3_ppo.inference_cuda_graphs does not go with inference_tp_size=2, whose ranks"),
        (
            {"inference_copy": "off", "actor_zero_stage": 3},
            "step3_ppo.inference_cuda_graphs: ZeRO-3 gathers weights layer by layer where inference_copy is off; drop",
        ),
    ],
)
def test_graphs_go_with_what_a_gpu_can_start_at_once(values: dict[str, Any], line: str) -> None:
    gpus = Machine(ranks=4, gpus=True, bf16=True)
    assert PPOConfig(inference_cuda_graphs=True).problems(gpus) == []
    assert PPOConfig(inference_cuda_graphs=True, inference_copy="off", actor_zero_stage=2).problems(gpus) == []
    (problem,) = PPOConfig(**values, inference_cuda_graphs=True).problems(gpus)
    assert problem.startswith(line)


def test_all_problems_come_together() -> None:
    config = PPOConfig(mini_batch_size=6, ptx_coef=1.0, ema=False, ema_decay=0.9, lora_alpha=4.0)
    assert len(config.problems(Machine(ranks=1))) == 4


@pytest.mark.parametrize("config_class, stage", [(SFTConfig, "step1_sft"), (RewardConfig, "step2_reward")])
@pytest.mark.parametrize(
    "name, value",
    [("lora_alpha", 8.0), ("lora_dropout", 0.1), ("lora_target_modules", ["q_proj"]), ("lora_learning_rate", 1.0)],
)
def test_adapters_settings_without_adapters_are_said(config_class: Any, stage: str, name: str, value: Any) -> None:
    assert config_class(**{name: value}).problems(Machine(ranks=1)) == [
        f"{stage}.{name} is set but lora_rank is 0: it has no effect; set {stage}.lora_rank"
    ]
    assert config_class(**{name: value}, lora_rank=4).problems(Machine(ranks=1)) == []


@pytest.mark.parametrize("config_class, stage", [(DPOConfig, "step2_dpo"), (PPOConfig, "step3_ppo")])
def test_dropout_of_adapters_is_refused_beside_a_reference(config_class: Any, stage: str) -> None:
    """Stage 3 left it out without a word."""
    (line,) = config_class(lora_rank=4, lora_dropout=0.1).problems(Machine(ranks=1))
    assert line.startswith(f"{stage}.lora_dropout is set but the model is compared with its reference")


def test_the_actor_is_called_by_what_taught_it() -> None:
    """Tables and report called it PPO whatever the estimator was."""
    output = SPEC.outputs[0]
    titles = [output.titled(PPOConfig(advantage_estimator=name).model_dump()) for name in ("gae", "rloo", "dr_grpo")]
    assert titles == ["PPO", "RLOO", "Dr. GRPO"]
    assert output.titled({}) == "PPO"


@pytest.mark.parametrize(
    "values", [{"gamma": 0.0}, {"gae_lambda": 1.5}, {"temperature": 0.0}, {"cliprange": 0.0}, {"ema_decay": 1.0}]
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        PPOConfig(**values)


def test_yaml_reads_off_as_false() -> None:
    assert PPOConfig(inference_copy=False).inference_copy == "off"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values, objective",
    [
        ({}, ("reward", "token", "token")),
        ({"advantage_estimator": "rloo"}, ("reward", "sequence", "sequence")),
        ({"advantage_estimator": "grpo"}, ("loss", "sequence", "token")),
        ({"advantage_estimator": "dr_grpo"}, ("loss", "constant", "token")),
        ({"advantage_estimator": "reinforce_pp"}, ("reward", "token", "token")),
        ({"advantage_estimator": "grpo", "kl_in": "reward", "loss_mean": "token"}, ("reward", "token", "token")),
        ({"advantage_estimator": "rloo", "ratio": "token", "loss_mean": "token"}, ("reward", "token", "token")),
        ({"kl_in": "loss"}, ("loss", "token", "token")),
    ],
)
def test_what_is_left_open_is_as_the_estimators_source_has_it(
    values: dict[str, Any], objective: tuple[str, ...]
) -> None:
    config = PPOConfig(responses_per_prompt=4, **values)
    assert config.problems(Machine()) == []
    assert (config.objective.kl_in, config.objective.loss_mean, config.objective.ratio) == objective


def test_without_a_critic_no_setting_of_an_engine_is_its() -> None:
    """A ZeRO stage of a critic that is not there was held against the other settings."""
    config = PPOConfig(advantage_estimator="reinforce_pp", critic_zero_stage=3, reuse_forward=True, actor_zero_stage=1)
    assert config.problems(Machine()) == []
    assert config.zero_stages(gpus=False) == {"actor": 1, "reference": 0, "reward model": 0}
    assert config.engine_settings() == {"actor": "actor_zero_stage"}
