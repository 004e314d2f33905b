#!/usr/bin/env bash
# Chat with a model that a run has left, or with two side by side:
#   bash scripts/chat.sh output/step3_ppo/actor --compare output/step1_sft/model
source "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh"
NUM_GPUS=1 run_stage rlhf.chat "$@"
