"""python -m step3_ppo: run this stage alone."""

from rlhf.stage import stage_command
from step3_ppo.config import PPOConfig

main = stage_command(PPOConfig, package="step3_ppo")

if __name__ == "__main__":
    main()
