#!/bin/bash
#SBATCH --job-name=train --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --mem=0 --time=24:00:00
#SBATCH --signal=B:USR1@600 --requeue --open-mode=append --output=%x-%j.log
RECIPE=${RECIPE:-}          # YAML file, see launch/recipes
OUT=${OUT:-runs/train}      # run folder; a run that is there goes on
PROCESSES=${PROCESSES:-}    # on each node; empty: one for each GPU
IFNAME=${IFNAME:-}          # network between the nodes, as ib0; empty: NCCL and gloo choose
RETRIES=${RETRIES:-3}       # give up after so many ends in a row without a new checkpoint
# usage, from the root of the repository, with more options of `newtonrewards train` at the end:
#   RECIPE=my.yaml OUT=runs/mine sbatch --nodes=2 launch/slurm/train.sh --set stages.0.steps=100
# Told to stop (10 minutes before --time, or preempted), it saves after the step and is requeued. For your site set
# SBATCH_PARTITION and SBATCH_ACCOUNT.
ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-.}}
# shellcheck source=launch/slurm/common.sh
. "$ROOT/launch/slurm/common.sh" || { echo "Submit it from the root of the repository, or set ROOT." >&2 && exit 2; }
prepare
needs RECIPE

newest() {
    local checkpoints
    checkpoints=$(find "$OUT/checkpoints" -mindepth 1 -maxdepth 1 -name 'step_*' 2>/dev/null | sort | tail -n 1)
    echo "${checkpoints:+$(basename "$checkpoints")}"
}

PARTIAL='' # 1 is a crash here
ranks -m newtonrewards.training.train --recipe "$RECIPE" --out "$OUT" "$@"
finish
