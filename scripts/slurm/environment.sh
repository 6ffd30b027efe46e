# Sourced by the batch files: what every task of a job needs. docs/cluster.md explains each line; values already set stay.
# shellcheck shell=bash
if [ -n "${LATENT_TTS_ENVIRONMENT:-}" ]; then
    # shellcheck source=/dev/null
    source "$LATENT_TTS_ENVIRONMENT/bin/activate"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export LATENT_TTS_DATA="${LATENT_TTS_DATA:-$PWD/data}"
export PYTHONUNBUFFERED=1
