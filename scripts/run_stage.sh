# Sourced by step1_sft.sh, step2_dpo.sh, step2_reward.sh and step3_ppo.sh: run_stage PACKAGE ARGUMENTS...
set -euo pipefail

run_stage() {
    local root
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    # Our packages are found from every working folder, even if it has packages of the same name.
    export PYTHONSAFEPATH=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    if [ "${NUM_GPUS:-1}" = 1 ]; then
        exec python -m "$@"
    fi
    exec python -m scripts.run_stage "$NUM_GPUS" "$@"
}
