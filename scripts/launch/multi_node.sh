#!/usr/bin/env bash
# Train on all GPUs of several machines: start it on each, with the same NODES and MASTER_ADDR and a NODE_RANK of its own.
# Under Slurm (one task a node) NODES and NODE_RANK come from there. The output folder must be one that all machines share.
# usage: NODES=2 NODE_RANK=0 MASTER_ADDR=HOST [PROCESSES=N] [ZERO=zero2] scripts/launch/multi_node.sh RECIPE.yaml [options of train.py]
set -euo pipefail
nodes=${NODES:-${SLURM_NNODES:-}}
rank=${NODE_RANK:-${SLURM_NODEID:-}}
if [ $# -eq 0 ] || [ -z "$nodes" ] || [ -z "$rank" ] || [ -z "${MASTER_ADDR:-}" ]; then
    sed -n 's/^# usage: /usage: /p' "$0" >&2
    exit 2
fi
project=$(cd "$(dirname "$0")/../.." && pwd)
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.accelerator.device_count()))')}
zero=${ZERO:-zero2}
options=()
if [ "$zero" != none ]; then
    if [ ! -f "$project/zero_configs/$zero.json" ]; then
        echo "error: ZERO=$zero: there is no zero_configs/$zero.json" >&2
        exit 2
    fi
    options=(--deepspeed "$project/zero_configs/$zero.json")
fi
exec python -m torch.distributed.run --nnodes "$nodes" --node_rank "$rank" --nproc_per_node "$processes" \
    --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" "$project/train.py" --config "$@" "${options[@]}"
