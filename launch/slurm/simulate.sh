#!/bin/bash
#SBATCH --job-name=simulate --nodes=1 --ntasks=1 --cpus-per-task=16 --mem=32G --time=2:00:00
#SBATCH --signal=B:USR1@60 --requeue --open-mode=append --output=%x-%j.log
OUT=${OUT:-runs/data}       # folder of clips; what is there stays
SHARDS=${SHARDS:-}          # empty: as many as the array has tasks
RETRIES=${RETRIES:-3}       # give up after so many ends in a row without a new clip
# usage, from the root of the repository, with the options of `newtonrewards simulate` at the end:
#   OUT=runs/data/train sbatch --array=0-7 launch/slurm/simulate.sh --num-clips 10000
#   SHARDS=8 OUT=runs/data/train sbatch --array=3,5 launch/slurm/simulate.sh --num-clips 10000   # two of them again
# Without --array it makes all that is missing.
ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-.}}
# shellcheck source=launch/slurm/common.sh
. "$ROOT/launch/slurm/common.sh" || { echo "Submit it from the root of the repository, or set ROOT." >&2 && exit 2; }
prepare
find_shard
PARTIAL='' # 1 is a crash here
step -m newtonrewards.simulation.simulate --out "$OUT" --shard "$SHARD" --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
finish
