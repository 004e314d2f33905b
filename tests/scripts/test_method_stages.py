from __future__ import annotations

from scripts.method_stages import METHODS, packages_of
from scripts.pretended_nodes import short


def test_scripts_know_the_stages_of_every_method() -> None:
    """They listed the stages by name, and so did not know DPO."""
    assert packages_of() == packages_of("ppo") == ("step1_sft", "step2_reward", "step3_ppo")
    assert packages_of("dpo") == packages_of("kto") == ("step1_sft", "step2_dpo")
    assert set(METHODS) >= {"ppo", "dpo", "kto"}


def test_a_trial_sets_nothing_of_another_methods_stages() -> None:
    """The plan refuses a setting of a stage that the method does not have."""
    for method in METHODS:
        sections = {word.partition(".")[0] for word in short(method) if "=" in word}
        assert sections == {"prepare", "evaluate", *packages_of(method)}
