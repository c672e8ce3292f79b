#!/usr/bin/env bash
# Train on all GPUs of this machine, or on PROCESSES of them. ZERO is a name of zero_configs/, or none for plain DDP.
# usage: [PROCESSES=N] [ZERO=zero2] scripts/launch/multi_gpu.sh RECIPE.yaml [options of train.py]
set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n 's/^# usage: /usage: /p' "$0" >&2
    exit 2
fi
project=$(cd "$(dirname "$0")/../.." && pwd)
processes=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.accelerator.device_count()))')}
zero=${ZERO:-zero2}
if [ "$zero" = none ]; then
    exec python -m torch.distributed.run --standalone --nproc_per_node "$processes" "$project/train.py" --config "$@"
fi
if [ ! -f "$project/zero_configs/$zero.json" ]; then
    echo "error: ZERO=$zero: there is no zero_configs/$zero.json" >&2
    exit 2
fi
exec python -m deepspeed.launcher.runner --num_accelerators "$processes" --master_port "${MASTER_PORT:-29500}" \
    "$project/train.py" --config "$@" --deepspeed "$project/zero_configs/$zero.json"
