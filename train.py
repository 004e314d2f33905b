"""From a pretrained language model to a chat model: supervised fine-tuning, a reward model, PPO; or DPO or KTO.

    python train.py                                                       the embedded demo
    python train.py --actor-model opt-13b --reward-model opt-350m --data-path Dahoas/rm-static --num-gpus 8

It names the stages. `rlhf/pipeline/` combines recipe and flags, checks everything, starts each stage and follows it.
Imports no torch.
"""

from __future__ import annotations

import step1_sft.spec
import step2_dpo.spec
import step2_reward.spec
import step3_ppo.spec
from rlhf.pipeline.command import pipeline_command

STAGES = (
    step1_sft.spec.SPEC,
    step2_reward.spec.SPEC,
    step3_ppo.spec.SPEC,
    step2_dpo.spec.SPEC,
)
HELP = """From a pretrained language model to a chat model: supervised fine-tuning, a reward model, PPO.
With --method dpo the pairs are learned directly instead, with --method kto single answers that are good or bad.

Without arguments it runs the embedded demo: a small model that is made at the start, in minutes on a CPU. The same
command continues a run that was stopped.

\b
  python train.py
  python train.py --actor-model opt-13b --reward-model opt-350m --num-gpus 8
  python train.py --method dpo --actor-model opt-1.3b --data-path pairs.jsonl
"""

main = pipeline_command("train.py", STAGES, help=HELP)

if __name__ == "__main__":
    main()
