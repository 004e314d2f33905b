"""Every recipe in scripts/recipes is valid: a long run that stops at a typo costs its user a night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import build, flag_of, read_yaml
from rlhf.hardware import Machine
from rlhf.models.names import ALIASES
from rlhf.pipeline.config import PipelineConfig
from rlhf.stage_config import stage_engine_problems
from step1_sft.config import SFTConfig
from step2_dpo.config import DPOConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "recipes"
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
# The ranks that a recipe is written for. The demos run on whatever is there.
RANKS = {
    "demo": (1, 2),
    "arithmetic": (1, 2),
    "smollm2-360m": (1, 2),
    "qwen2.5-1.5b": (1, 2),
    "opt-1.3b": (1, 2, 4),
    "opt-13b": (8,),
    "opt-66b": (8,),
    "qwen2.5-0.5b": (1, 2),
    "qwen2.5-7b": (8,),
    "llama-3.2-1b": (1, 2),
    "llama-3.1-8b": (8,),
}
STAGES = {"step1_sft": SFTConfig, "step2_dpo": DPOConfig, "step2_reward": RewardConfig, "step3_ppo": PPOConfig}
DEMOS = {"demo", "arithmetic"}
FOR_GPUS = sorted(set(RECIPES) - DEMOS)

recipe = pytest.mark.parametrize("name", sorted(RECIPES))
gpu_recipe = pytest.mark.parametrize("name", FOR_GPUS)


def test_every_recipe_says_its_ranks() -> None:
    assert set(RECIPES) <= set(RANKS)


def stage_configs(name: str) -> dict[str, Any]:
    """The three stages' configs as the recipe alone makes them; pipeline-wide settings reach the stages they stand for.

    `build` raises ConfigError on an unknown key, a wrong type or a value out of range, and names it.
    """
    values = read_yaml(RECIPES[name])
    assert set(values) <= {"pipeline", "prepare", "evaluate", *STAGES}
    pipeline = build(PipelineConfig, values.get("pipeline") or {}, where="pipeline")
    given = pipeline.model_dump(exclude_none=True, exclude={"output_dir"})
    configs = {}
    for stage, config_class in STAGES.items():
        flags = {name: flag_of(config_class, name) for name in config_class.model_fields}
        spread = {name: given[flag] for name, flag in flags.items() if flag in given}
        settings = {**spread, **(values.get(stage) or {})}
        configs[stage] = build(config_class, settings, where=stage)
        if stage == "step2_dpo":  # --method, which is always typed, leaves out what another loss reads
            unread = configs[stage].unread
            settings = {name: value for name, value in settings.items() if name not in unread}
            configs[stage] = build(config_class, settings, where=stage)
    return configs


@recipe
def test_settings_are_known_and_agree(name: str) -> None:
    """Sizes that must divide, engines that cannot be, options without effect; GPUs that multiply bf16 are assumed."""
    for ranks in RANKS[name]:
        for stage, config in stage_configs(name).items():
            found = [*config.problems(Machine(ranks=ranks)), *config.batch_problems(stage, ranks)]
            if name not in DEMOS:
                found += stage_engine_problems(config, stage, gpus=True, bf16=True)
            assert found == []


@gpu_recipe
def test_batches_divide_on_the_ranks_that_the_recipe_is_for(name: str) -> None:
    """Ranks × micro-batch divides a mini-batch, so that no forward of a step is partly padding."""
    for ranks in RANKS[name]:
        configs = stage_configs(name)
        for stage, config in configs.items():
            assert config.mini_batch_size % (config.micro_batch_size * ranks) == 0, (stage, ranks)
        ppo = configs["step3_ppo"]
        assert ppo.rollout_batch_size % (ranks * (ppo.rollout_micro_batch_size or 1)) == 0
        assert ppo.rollout_batch_size % ppo.mini_batch_size == 0


@gpu_recipe
def test_models_are_aliases_of_one_family(name: str) -> None:
    """The critic starts from the reward model, so both must have one tokenizer: in these families, all sizes do."""
    pipeline = read_yaml(RECIPES[name])["pipeline"]
    actor, reward_model = ALIASES[pipeline["actor_model"]], ALIASES[pipeline["reward_model"]]
    assert actor.partition("-")[0] == reward_model.partition("-")[0]
