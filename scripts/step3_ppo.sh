#!/usr/bin/env bash
# Stage 3, PPO, alone, on NUM_GPUS ranks (1 unless set):
#   bash scripts/step3_ppo.sh --actor-model out/step1_sft/model --reward-model out/step2_reward/model --data-path train.jsonl --output-dir out/step3_ppo
source "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh"
run_stage step3_ppo "$@"
