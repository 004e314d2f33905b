"""RLOO and GRPO of stage 3 against TRL 1.16's trainers, on the same models, responses and scores.

`trl_numbers.json` is what `scripts/trl_numbers.py` got from TRL. Where stage 3 differs on purpose: scores are
normalised, clipped and lowered where no end token came, before the estimator (here they go in as they are); the mean
over tokens is that of the whole step, where TRL averages the means of its micro-batches
(`test_optimise_estimators.py`); the KL in the loss is k3 as in the GRPO paper, which TRL by default multiplies by the
ratio (`use_bias_correction_kl`, off here).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import trl_numbers
from step3_ppo.config import PPOConfig
from step3_ppo.experience import make_experience
from step3_ppo.optimise import optimise
from step3_ppo.passes import ForwardPasses
from step3_ppo.rewards.function import RewardFunction
from step3_ppo.roles import Roles, build_roles
from step3_ppo.rollout import Rollout
from tests.helpers import engines
from tests.helpers.trl import save_reference

pytestmark = pytest.mark.usefixtures("one_rank")
TRL: dict[str, Any] = json.loads(Path(__file__).with_name("trl_numbers.json").read_text(encoding="utf-8"))
RATE = 1000.0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reference(tmp_path_factory.mktemp("reference"))


def rollout() -> Rollout:
    responses = [response for group in trl_numbers.RESPONSES for response in group]
    return Rollout(
        prompts=[prompt for prompt in trl_numbers.PROMPTS for _ in range(trl_numbers.GROUP)],
        responses=responses,
        sampler_logprobs=[[0.0] * len(response) for response in responses],
        stopped_B=torch.tensor([response[-1] == 2 for response in responses]),
        messages=["[]"] * len(responses),
    )


def give_weights(roles: Roles, variant: int) -> None:
    """Another variant of the model for the actor alone; at ZeRO-0 its parameters are all that there is."""
    wanted = dict(trl_numbers.build_model(variant).named_parameters())
    with torch.no_grad():
        for name, parameter in roles.actor.engine.module.lm.named_parameters():
            parameter.copy_(wanted[name])


@pytest.mark.parametrize("micro_batch_size", [12, 5])
@pytest.mark.parametrize("name", trl_numbers.CASES)
def test_advantages_loss_and_gradients_are_those_of_trl(reference: Path, name: str, micro_batch_size: int) -> None:
    _, _, settings = trl_numbers.CASES[name]
    config = PPOConfig(
        actor_model=str(reference), responses_per_prompt=trl_numbers.GROUP, rollout_batch_size=12, mini_batch_size=12,
        micro_batch_size=micro_batch_size, max_response_length=trl_numbers.LONGEST, kl_coef=trl_numbers.KL_COEF,
        cliprange=trl_numbers.CLIP, cliprange_high=trl_numbers.CLIP_HIGH, actor_learning_rate=RATE, adam_eps=1.0,
        gradient_clipping=0.0, warmup_ratio=0.0, actor_zero_stage=0, **settings,
    )  # fmt: skip
    roles = build_roles(config, optimizer_steps=10, reward=RewardFunction(lambda prompt, response: 0.0))
    passes, wanted = ForwardPasses(roles, config), TRL[name]
    give_weights(roles, 1)
    m = passes.measure(rollout(), 0)
    scores_B = torch.tensor([score for group in trl_numbers.SCORES for score in group])
    e = make_experience(m, scores_B, config, kl_coef=config.kl_coef)
    torch.testing.assert_close(e.advantages_BR[:, 0], torch.tensor(wanted["advantages"]), rtol=1e-5, atol=1e-5)

    give_weights(roles, 2)
    before = engines.weights(roles.actor.engine)
    figures = optimise(e, passes, config, iteration=0, steps_before=0).means()
    loss = figures["ppo/actor_loss"] + config.kl_coef * figures.get("ppo/kl_loss", 0.0)
    assert loss == pytest.approx(wanted["loss"], rel=1e-5, abs=1e-6)
    assert figures["ppo/clipfrac"] == pytest.approx(wanted["clipped"], abs=1e-6)
    assert figures["ppo/clipfrac"] > 0
    steps = {n: (before[n] - after).double() / RATE for n, after in engines.weights(roles.actor.engine).items()}
    found = trl_numbers.summaries({n: step / (1 - step.abs()) for n, step in steps.items()})
    assert found.keys() == wanted["gradients"].keys()
    for weight, numbers in found.items():
        norm = wanted["gradients"][weight][0]
        assert numbers == pytest.approx(wanted["gradients"][weight], rel=1e-5, abs=1e-5 * max(norm, 1.0)), weight
