# Sourced by step1_sft.sh, step2_reward.sh and step3_ppo.sh: run_stage PACKAGE ARGUMENTS...
set -euo pipefail

run_stage() {
    local root ranks="${NUM_GPUS:-1}" package="$1"
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    # Whatever folder this is called from, our packages are found, and none of the same name in that folder.
    export PYTHONSAFEPATH=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    if [ "$ranks" = 1 ]; then
        exec python -m "$@"
    fi
    local cores
    cores="$(getconf _NPROCESSORS_ONLN)"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}"
    exec python -m torch.distributed.run --standalone --nproc_per_node "$ranks" -m "$@"
}
