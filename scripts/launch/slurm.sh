#!/usr/bin/env bash
# Train on all GPUs of several machines under Slurm, one task a machine. ZERO is a name of zero_configs/, or none for plain DDP.
# usage: sbatch --nodes 2 --gpus-per-node 8 [options of sbatch] scripts/launch/slurm.sh RECIPE.yaml [options of train.py]
#SBATCH --job-name=llava-pose
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
set -euo pipefail
if [ $# -eq 0 ] || [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    sed -n 's/^# usage: /usage: /p' "$0" >&2
    exit 2
fi
# Slurm runs a copy of this file: the project is where sbatch was called, unless PROJECT says otherwise
project=${PROJECT:-$SLURM_SUBMIT_DIR}
export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
exec srun bash "$project/scripts/launch/multi_node.sh" "$@"
