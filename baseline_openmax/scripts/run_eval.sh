#!/bin/sh
# deep-osr's command: run_eval.sh RUN_DIR [flags of test.py]. Writes metrics.json and scores.npz, and eval_outputs/ as deep-osr.
set -e
[ $# -ge 1 ] || { echo "usage: run_eval.sh RUN_DIR [flags of test.py]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
run=$1
shift
"${PYTHON:-python}" "$root/baseline_openmax/test.py" --run_dir "$run" --save_features "$@"
exec "${PYTHON:-python}" "$root/baseline_openmax/export.py" deep-osr "$run"
