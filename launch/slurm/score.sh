#!/bin/bash
#SBATCH --job-name=score --nodes=1 --ntasks=1 --cpus-per-task=16 --mem=32G --time=4:00:00
#SBATCH --signal=B:USR1@60 --requeue --open-mode=append --output=%x-%j.log
VIDEOS=${VIDEOS:-}          # folder of videos
OUT=${OUT:-runs/scores}     # folder of the scores; videos that have one aren't scored again
SHARDS=${SHARDS:-}          # empty: as many as the array has tasks
PARTIAL=${PARTIAL:-0}       # 1: videos that can't be scored don't fail the job
RETRIES=${RETRIES:-3}       # give up after so many ends in a row without a new score
# usage, from the root of the repository, with more options of `newtonrewards score` at the end:
#   VIDEOS=runs/after OUT=runs/scores sbatch --array=0-7 launch/slurm/score.sh --reference runs/before
# Without --array it scores all that is missing.
ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-.}}
# shellcheck source=launch/slurm/common.sh
. "$ROOT/launch/slurm/common.sh" || { echo "Submit it from the root of the repository, or set ROOT." >&2 && exit 2; }
prepare
needs VIDEOS
find_shard
newest() { cat "$OUT"/scores*.jsonl 2>/dev/null | wc -l; }
step -m newtonrewards.eval.score "$VIDEOS" --out "$OUT" --shard "$SHARD" --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
finish
