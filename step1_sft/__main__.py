"""python -m step1_sft: run this stage alone."""

from rlhf.stage import stage_command
from step1_sft.config import SFTConfig

main = stage_command(SFTConfig, package="step1_sft")

if __name__ == "__main__":
    main()
