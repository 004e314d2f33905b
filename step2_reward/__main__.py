"""python -m step2_reward: run this stage alone."""

from step2_reward.config import RewardConfig
from rlhf.stage import stage_command

main = stage_command(RewardConfig, package="step2_reward")

if __name__ == "__main__":
    main()
