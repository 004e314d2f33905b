"""python -m step3_ppo: this stage alone."""

from rlhf.stages.command import stage_command
from step3_ppo.spec import SPEC

main = stage_command(SPEC)

if __name__ == "__main__":
    main()
