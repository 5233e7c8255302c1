#!/bin/sh
# deep-osr's command: gen_plots.sh RUN_DIR. Draws plots/<RUN>_{oscr,roc,tsne,cm}.png from the saved scores alone.
set -e
[ $# -eq 1 ] || { echo "usage: gen_plots.sh RUN_DIR" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
run=${1%/}
name=$(basename "$(cd "$run" && pwd)")
"${PYTHON:-python}" "$root/baseline_openmax/plots.py" "$run" --out "$run/plots" --figures oscr roc tsne confusion
for figure in oscr roc tsne confusion; do
    short=$figure
    [ "$figure" = confusion ] && short=cm
    mv "$run/plots/$figure.png" "$run/plots/${name}_$short.png"
done
echo "written: $run/plots"
