#!/bin/bash
# Train as a job of SLURM, on one node or many: sbatch scripts/slurm.sh model=vit data=cifar10 data.root=/data
# Run it from the repository. Words for sbatch come first (sbatch --nodes=2 --time=12:00:00 scripts/slurm.sh ...), words
# for train.py last. Shortly before its time is over the job saves a checkpoint, is requeued and goes on from there.
#SBATCH --job-name=lightning-dropout
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
# As many tasks as GPUs: one process each. The signal comes that many seconds before the end; a checkpoint must be
# written by then. Without a `B:` it reaches the training and not this shell.
set -euo pipefail

# A requeued job keeps its number, and so its folder: outputs/slurm-<number>.
export LIGHTNING_DROPOUT_STAMP="slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"

exec srun python scripts/train.py \
  trainer=ddp \
  trainer.num_nodes="$SLURM_NNODES" \
  trainer.devices="$SLURM_NTASKS_PER_NODE" \
  resume=auto \
  "$@"
