#!/usr/bin/env bash
# Stage 2, the reward model, alone, on NUM_GPUS ranks (1 unless set):
#   bash scripts/step2_reward.sh --model opt-350m --data-path train.jsonl --output-dir out/step2_reward
source "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh"
run_stage step2_reward "$@"
