#!/bin/bash
# Snakemake itself as a SLURM job, in the folder of the project:
#   sbatch [--partition=NAME --account=NAME --time=LIMIT] profiles/slurm/controller.sh [options of snakemake]
# Before its time limit it is requeued, and after each restart it adopts the jobs that are still in the queue.
#SBATCH --job-name=snakemake
#SBATCH --output=snakemake-%j.log
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# A process group of its own for Snakemake, which also receives interrupts.
set -m

# SIGKILL, because an interrupt would cancel the jobs and SIGTERM would wait for them.
requeue() {
    kill -KILL -- "-$snakemake"
    until scontrol requeue "$SLURM_JOB_ID"; do sleep 5; done
    sleep infinity
}
trap requeue USR1
trap 'kill -INT -- "-$snakemake"' INT

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    snakemake --profile slurm "$@" --unlock
fi
snakemake --profile slurm "$@" &
snakemake=$!
# A trap ends `wait` early.
while [ -n "$(jobs -pr)" ]; do wait "$snakemake"; done
wait "$snakemake"
