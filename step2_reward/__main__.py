"""python -m step2_reward: run this stage alone."""

from rlhf.stage import stage_command
from step2_reward.config import RewardConfig

main = stage_command(RewardConfig, package="step2_reward")

if __name__ == "__main__":
    main()
