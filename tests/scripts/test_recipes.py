"""Every recipe in scripts/recipes is valid: a long run that stops at a typo costs its user a night."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rlhf.config import build, read_yaml
from rlhf.model_names import ALIASES
from step1_sft.config import SFTConfig
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "recipes"
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
# The ranks that a recipe is written for. The demo runs on whatever is there.
RANKS = {
    "demo": (1, 2),
    "opt-1.3b": (1, 2, 4),
    "opt-13b": (8,),
    "opt-66b": (8,),
    "qwen2.5-0.5b": (1, 2),
    "qwen2.5-7b": (8,),
    "llama-3.2-1b": (1, 2),
    "llama-3.1-8b": (8,),
}
STAGES = {"step1_sft": SFTConfig, "step2_reward": RewardConfig, "step3_ppo": PPOConfig}
FOR_GPUS = sorted(set(RECIPES) - {"demo"})

recipe = pytest.mark.parametrize("name", sorted(RECIPES))
gpu_recipe = pytest.mark.parametrize("name", FOR_GPUS)


def test_every_recipe_says_its_ranks() -> None:
    assert set(RECIPES) <= set(RANKS)


@recipe
def test_sections_hold_known_settings(name: str) -> None:
    """`build` raises ConfigError on an unknown key, a wrong type or a value out of range, and names it."""
    values = read_yaml(RECIPES[name])
    assert set(values) <= {"pipeline", "prepare", "evaluate", *STAGES}
    for section, config_class in STAGES.items():
        build(config_class, values.get(section) or {}, where=section)


@recipe
def test_settings_agree_with_each_other(name: str) -> None:
    """What concerns one field alone passed above; here the sizes that must divide, and options without effect."""
    values = read_yaml(RECIPES[name])
    for ranks in RANKS[name]:
        for section, config_class in STAGES.items():
            # A pipeline-wide setting reaches the stage that has a field of the same name.
            shared = {k: v for k, v in (values.get("pipeline") or {}).items() if k in ("lora_rank", "dtype")}
            config = build(config_class, {**shared, **(values.get(section) or {})}, where=section)
            assert config.problems(ranks) == []


@gpu_recipe
def test_batches_divide_on_the_ranks_that_the_recipe_is_for(name: str) -> None:
    """Ranks × micro-batch divides a mini-batch, so that no forward of a step is partly padding."""
    values = read_yaml(RECIPES[name])
    for ranks in RANKS[name]:
        for section, config_class in STAGES.items():
            config = build(config_class, values.get(section) or {}, where=section)
            assert config.mini_batch_size % (config.micro_batch_size * ranks) == 0, (section, ranks)
        ppo = build(PPOConfig, values["step3_ppo"], where="step3_ppo")
        assert ppo.rollout_batch_size % (ranks * (ppo.rollout_micro_batch_size or 1)) == 0
        assert ppo.rollout_batch_size % ppo.mini_batch_size == 0


@gpu_recipe
def test_models_are_aliases_of_one_family(name: str) -> None:
    """The critic starts from the reward model, so both must have one tokenizer: in these families, all sizes do."""
    pipeline = read_yaml(RECIPES[name])["pipeline"]
    actor, reward_model = ALIASES[pipeline["actor_model"]], ALIASES[pipeline["reward_model"]]
    assert actor.partition("-")[0] == reward_model.partition("-")[0]


@recipe
def test_pipeline_section_is_what_the_orchestrator_takes(name: str) -> None:
    if importlib.util.find_spec("train") is None:
        pytest.skip("there is no train.py")
    from train import PipelineConfig

    build(PipelineConfig, read_yaml(RECIPES[name]).get("pipeline") or {}, where="pipeline")
