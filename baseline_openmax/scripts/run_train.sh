#!/bin/sh
# deep-osr's command: run_train.sh EXPERIMENT [flags of main.py]. An experiment is a preset (cifar10_resnet50_energy, ...).
set -e
[ $# -ge 1 ] || { echo "usage: run_train.sh EXPERIMENT [flags of main.py]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
experiment=$(basename "$1")
shift
run="outputs/runs/$(date +%Y-%m-%d_%H-%M-%S)"
exec "${PYTHON:-python}" "$root/baseline_openmax/main.py" --preset "$experiment" --run_dir "$run" "$@"
