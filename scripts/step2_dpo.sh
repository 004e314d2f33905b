#!/usr/bin/env bash
# DPO (or --loss ipo, --loss kto), from a model of stage 1, alone, on NUM_GPUS ranks (1 unless set):
#   bash scripts/step2_dpo.sh --model out/step1_sft/model --data-path train.jsonl --output-dir out/step2_dpo
source "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh"
run_stage step2_dpo "$@"
