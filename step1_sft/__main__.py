"""python -m step1_sft: this stage alone."""

from rlhf.stages.command import stage_command
from step1_sft.spec import SPEC

main = stage_command(SPEC)

if __name__ == "__main__":
    main()
