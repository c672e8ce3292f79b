#!/usr/bin/env bash
# Train on the GPUs of several machines, started from one of them over ssh. HOSTFILE has a line "name slots=GPUS" for each.
# usage: HOSTFILE=hosts [ZERO=zero2] scripts/launch/hostfile.sh RECIPE.yaml [options of train.py]
set -euo pipefail
if [ $# -eq 0 ] || [ -z "${HOSTFILE:-}" ]; then
    sed -n 's/^# usage: /usage: /p' "$0" >&2
    exit 2
fi
project=$(cd "$(dirname "$0")/../.." && pwd)
zero=${ZERO:-zero2}
for file in "$HOSTFILE" "$project/zero_configs/$zero.json"; do
    if [ ! -f "$file" ]; then
        echo "error: $file: there is no such file" >&2
        exit 2
    fi
done
exec python -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --master_port "${MASTER_PORT:-29500}" \
    "$project/train.py" --config "$@" --deepspeed "$project/zero_configs/$zero.json"
