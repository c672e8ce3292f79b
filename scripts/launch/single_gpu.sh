#!/usr/bin/env bash
# Train on one GPU, or on the CPU where there is none. GPU chooses one of several.
# usage: [GPU=0] scripts/launch/single_gpu.sh RECIPE.yaml [options of train.py]
set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n 's/^# usage: /usage: /p' "$0" >&2
    exit 2
fi
project=$(cd "$(dirname "$0")/../.." && pwd)
export CUDA_VISIBLE_DEVICES="${GPU:-0}"
exec python "$project/train.py" --config "$@"
