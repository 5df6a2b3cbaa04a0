#!/usr/bin/env bash
# A program on the GPUs of several nodes of a Slurm cluster, one process a GPU:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 tpu/slurm/job.sh \
#       rlhf ppo --config experiments/embedded_world/ppo.yaml --output "$SCRATCH/pilot"
#
# RLHF_DRY_RUN=1 prints the command that it would run instead, outside of Slurm too. Options given to sbatch win over those here.
#SBATCH --job-name=rlhf
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@300
set -euo pipefail

SAVED_AND_STOPPED=143 # what the program ends with when a signal stopped it and its state is saved

if [[ $# -eq 0 || $1 == --help ]]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi

command=(srun --kill-on-bad-exit=1 "$@")
if [[ -n ${RLHF_DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "this script is for sbatch: sbatch --nodes=2 $0 $*" >&2
    exit 2
fi

# Slurm runs a copy of this file elsewhere, so the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ -f .venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi

# One run in wandb, however often Slurm starts the job again; the stages of a pipeline are a run each, of one group.
export WANDB_RESUME=allow WANDB_RUN_GROUP="slurm-$SLURM_JOB_ID"
if [[ ${2:-} != pipeline ]]; then
    export WANDB_RUN_ID="slurm-$SLURM_JOB_ID"
fi

# Five minutes before the time is over Slurm tells this shell alone; the program saves when it is told.
trap 'kill -TERM "${!:-}" 2> /dev/null || true' TERM
"${command[@]}" &
srun_process=$!
while true; do
    exit_code=0
    wait "$srun_process" || exit_code=$?
    kill -0 "$srun_process" 2> /dev/null || break
done

# A job that Slurm preempts goes back into the queue by --requeue; one that ran out of time does not, so this puts it there.
if [[ $exit_code -eq $SAVED_AND_STOPPED ]]; then
    echo "stopped and saved; going back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$exit_code"
