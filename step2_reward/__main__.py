"""python -m step2_reward: this stage alone."""

from rlhf.stages.command import stage_command
from step2_reward.spec import SPEC

main = stage_command(SPEC)

if __name__ == "__main__":
    main()
