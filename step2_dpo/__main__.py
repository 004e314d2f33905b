"""python -m step2_dpo: this stage alone."""

from rlhf.stages.command import stage_command
from step2_dpo.spec import SPEC

main = stage_command(SPEC)

if __name__ == "__main__":
    main()
