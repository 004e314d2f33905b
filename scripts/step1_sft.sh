#!/usr/bin/env bash
# Stage 1, supervised fine-tuning, alone, on NUM_GPUS ranks (1 unless set):
#   bash scripts/step1_sft.sh --model opt-1.3b --data-path train.jsonl --output-dir out/step1_sft
source "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh"
run_stage step1_sft "$@"
