#!/bin/sh
# All experiments of the release: cifar10, svhn, tinyimagenet x splits a-e x linear, pcssr, rcssr; 45 runs.
#
#   sh run.sh                          from here or from the root; finished runs are skipped, interrupted ones go on
#   sh run.sh -j 3                     three runs at once
#   sh run.sh --shard 2/5              the second of five parts, for five machines or jobs
#   sh run.sh --list                   print the commands only
#   sh run.sh --datasets "digits mnist" --splits "a b" --models rcssr
#   sh run.sh --dry_run                one small batch of every phase; other flags go to main.py as well
#
# A run is named <model>_<dataset>_<split>, below runs/cssr (--runs DIR: there); what it prints goes to <name>.log beside it.
# $PYTHON: interpreter, else python; $GPU: number of the GPU, else 0. Exit code 1 when a run failed, 2 for a wrong flag.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
datasets="cifar10 svhn tinyimagenet"; splits="a b c d e"; models="linear pcssr rcssr"
runs=$root/runs/cssr; jobs=1; shard=1/1; interval=2; list=no; dry=no

fail() { echo "error: $1" >&2; exit 2; }
number() { case $1 in '' | *[!0-9]* | 0*) fail "$2 expects a number from 1 on, got '$1'";; esac; }

# What is not for this script stays in "$@", for main.py.
left=$#
take() { [ "$left" -ge 2 ] || fail "$1 expects a value"; }
while [ "$left" -gt 0 ]; do
    used=1
    case $1 in
        -j) take "$1"; jobs=$2; number "$jobs" -j; used=2;;
        --shard) take "$1"; shard=$2; used=2;;
        --datasets) take "$1"; datasets=$2; used=2;;
        --splits) take "$1"; splits=$2; used=2;;
        --models) take "$1"; models=$2; used=2;;
        --runs) take "$1"; runs=$2; used=2;;
        --test_interval) take "$1"; interval=$2; used=2;;
        --list) list=yes;;
        --dry_run) dry=yes; set -- "$@" "$1";;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0;;
        --save | --run_dir | --ds | --config | --gpu | --method) fail "run.sh sets $1 for each run itself (--help)";;
        *) set -- "$@" "$1";;
    esac
    shift "$used"; left=$((left - used))
done
part=${shard%/*}; parts=${shard#*/}
case $shard in */*) ;; *) fail "--shard expects i/n such as 2/5, got '$shard'";; esac
number "$part" --shard; number "$parts" --shard
[ "$part" -le "$parts" ] || fail "--shard expects i/n with i from 1 to n, got '$shard'"
[ $dry = yes ] && runs=$runs/dry_run  # finished runs stay

command_of() { # name, data set, split, model, flags for main.py
    name=$1 dataset=$2 split=$3 model=$4; shift 4
    set -- --gpu "${GPU:-0}" --ds "./exps/$dataset/spl_$split.json" --config "./configs/$model/$dataset.json" \
        --method cssr --test_interval "$interval" --save "$name" "$@"
    [ "$list" = yes ] && { echo python main.py "$@"; return; }
    [ -e "$runs/$name/config.json" ] && [ $dry = no ] && set -- "$@" --resume
    mkdir -p "$runs"
    "${PYTHON:-python}" "$here/main.py" "$@" --run_dir "$runs/$name" > "$runs/$name.log" 2>&1 < /dev/null &
    child=$!
    if wait "$child"; then echo "done: $name"; return; fi
    echo "failed: $name: $(tail -n 1 "$runs/$name.log")" >&2
    echo "$name" >> "$work/failed"
}

work=$(mktemp -d); lanes=""; count=0; turn=0
trap 'rm -rf "$work"' EXIT
trap 'kill $lanes 2>/dev/null; exit 130' INT TERM
for dataset in $datasets; do for split in $splits; do for model in $models; do
    name=${model}_${dataset}_${split}
    count=$((count + 1))
    [ $(((count - 1) % parts + 1)) -eq "$part" ] || continue
    if [ $list = yes ]; then command_of "$name" "$dataset" "$split" "$model" "$@"; continue; fi
    if [ $dry = no ] && grep -q '"finished": true' "$runs/$name/meta.json" 2>/dev/null; then
        echo "finished before: $name"; continue
    fi
    # The k-th run goes to lane k modulo -j; every lane works its list off.
    echo "$name $dataset $split $model" >> "$work/lane$((turn % jobs))"
    turn=$((turn + 1))
done; done; done
[ $list = yes ] && exit 0
for lane in "$work"/lane*; do
    [ -e "$lane" ] || continue
    (
        child=""
        trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 130' INT TERM
        trap - EXIT
        while read -r name dataset split model; do
            command_of "$name" "$dataset" "$split" "$model" "$@"
        done < "$lane"
    ) &
    lanes="$lanes $!"
done
wait
if [ -e "$work/failed" ]; then
    echo "$(wc -l < "$work/failed") of $turn runs failed; the same command repeats only those" >&2
    exit 1
fi
echo "$turn runs done; python $here/collect_metrics.py shows the results"
