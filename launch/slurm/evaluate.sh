#!/bin/bash
#SBATCH --job-name=evaluate --nodes=1 --ntasks=1 --cpus-per-task=16 --mem=32G --time=4:00:00
#SBATCH --signal=B:USR1@60 --requeue --open-mode=append --output=%x-%j.log
TRUTH=${TRUTH:-}            # folder of simulated clips
ARMS=${ARMS:-}              # NAME=FOLDER of generated clips, several with spaces between
OUT=${OUT:-runs/results}    # folder of summary.json, scores.jsonl, report.html
TRAINING=${TRAINING:-}      # run folder whose curves the report shows
PARTIAL=${PARTIAL:-0}       # 1: clips that can't be measured don't fail the job
RETRIES=${RETRIES:-3}       # give up after so many ends in a row
# usage, from the root of the repository, with more options of `newtonrewards evaluate` at the end:
#   TRUTH=runs/data/test ARMS="before=runs/before after=runs/after" sbatch launch/slurm/evaluate.sh --rewards
ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-.}}
# shellcheck source=launch/slurm/common.sh
. "$ROOT/launch/slurm/common.sh" || { echo "Submit it from the root of the repository, or set ROOT." >&2 && exit 2; }
prepare
needs TRUTH ${TRAINING:+TRAINING}
[ -n "$ARMS" ] || die "ARMS isn't set: ARMS=\"before=runs/before after=runs/after\" sbatch ..."
read -ra named <<<"$ARMS"
workers=${SLURM_CPUS_PER_TASK:-1}
step -m newtonrewards.eval.evaluate --truth "$TRUTH" "${named[@]/#/--arm=}" --out "$OUT" --workers "$workers" "$@"
measured=$code
if [ "$measured" -le 1 ]; then # 1: some clips couldn't be measured, the report is of the others
    step -m newtonrewards.eval.report --summary "$OUT" --out "$OUT/report.html" ${TRAINING:+--training "$TRAINING"}
    code=$((code > 0 ? code : measured))
fi
finish
