#!/bin/bash
#SBATCH --job-name=generate --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=4:00:00
#SBATCH --signal=B:USR1@60 --requeue --open-mode=append --output=%x-%j.log
MODEL=${MODEL:-}            # folder of a model
TRAINED=${TRAINED:-}        # a run's model folder: an adapter for MODEL or a whole model; empty: MODEL as it is
CLIPS=${CLIPS:-}            # folder of clips: their captions and first frames
OUT=${OUT:-runs/generated}  # folder of new clips; what is there stays
SHARDS=${SHARDS:-}          # empty: as many as the array has tasks
PARTIAL=${PARTIAL:-0}       # 1: clips that can't be made don't fail the job
RETRIES=${RETRIES:-3}       # give up after so many ends in a row without a new clip
# usage, from the root of the repository, with more options of `newtonrewards generate` at the end:
#   MODEL=Wan2.2 CLIPS=runs/data/test OUT=runs/before sbatch --array=0-7 launch/slurm/generate.sh --batch-size 1
# A task makes whole batches, one process for each of its GPUs. Without --array it makes all that is missing.
ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-.}}
# shellcheck source=launch/slurm/common.sh
. "$ROOT/launch/slurm/common.sh" || { echo "Submit it from the root of the repository, or set ROOT." >&2 && exit 2; }
prepare
needs MODEL CLIPS
find_shard
model=("$MODEL")
if [ -n "$TRAINED" ]; then
    needs TRAINED
    if [ -e "$TRAINED/model_index.json" ]; then model=("$TRAINED"); else model+=(--lora "$TRAINED"); fi
fi
ranks -m newtonrewards.launch.generate --model "${model[@]}" --clips "$CLIPS" --out "$OUT" --shard "$SHARD" "$@"
finish
