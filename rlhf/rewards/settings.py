"""Settings of rewards, for whatever scores responses by them: stage 3 and evaluation. Imports no torch."""

from __future__ import annotations

from typing import ClassVar

from rlhf.config import Config, setting
from rlhf.rewards.names import Reward, parse

REWARD_HELP = (
    "what scores a response: FILE.py:FUNCTION, model:FOLDER_OR_HUB_NAME, check:NAME or reward_model, with :WEIGHT; "
    "repeatable"
)
TIMEOUT_HELP = "longest time that a reward function may take for a batch of responses, in seconds"
CODE_HELP = "permission for check:code to run code that the model writes, with limits but without a wall"


class RewardSettings(Config):
    """Which rewards score responses, and how their functions may run."""

    help_groups: ClassVar = {"Rewards": ("reward", "reward_timeout", "run_generated_code")}

    reward: list[str] = setting([], REWARD_HELP)
    reward_timeout: float = setting(600.0, TIMEOUT_HELP, resumable=True, gt=0)
    run_generated_code: bool = setting(False, CODE_HELP, resumable=True)

    @property
    def rewards(self) -> list[Reward]:
        """The rewards that `reward` names, those aside that cannot be understood."""
        return parse(self.reward)[0]

    def reward_problems(self) -> list[str]:
        """What is wrong with the rewards as they are written, one line each. No file and no model is looked at."""
        rewards, found = parse(self.reward)
        codes = [reward for reward in rewards if reward.kind == "check" and reward.target == "code"]
        if codes and not self.run_generated_code:
            found.append(
                f"{codes[0].flag} runs code that the model writes, on this machine and as you; if it may, add "
                "--run-generated-code"
            )
        if self.run_generated_code and not codes:
            found.append("--run-generated-code has no effect without --reward check:code; leave it out")
        if self.changed("reward_timeout") and not any(reward.is_called for reward in rewards):
            found.append("--reward-timeout has no effect: no --reward is a function or a check; leave it out")
        return found
