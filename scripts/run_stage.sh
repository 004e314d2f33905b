# Sourced by step1_sft.sh, step2_reward.sh and step3_ppo.sh: run_stage PACKAGE ARGUMENTS...
set -euo pipefail

run_stage() {
    local root
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    # Whatever folder this is called from, our packages are found, and none of the same name in that folder.
    export PYTHONSAFEPATH=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    if [ "${NUM_GPUS:-1}" = 1 ]; then
        exec python -m "$@"
    fi
    exec python -m scripts.run_stage "$NUM_GPUS" "$@"
}
