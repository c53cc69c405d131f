#!/bin/bash
MODEL=${MODEL:-}                     # folder of the model to train
RECIPE=${RECIPE:-}                   # how; its model.path and data.clips are set to MODEL and the new clips
RUN=${RUN:-runs/chain}               # folder of everything
TASKS=${TASKS:-8}                    # of each array
TRAIN_CLIPS=${TRAIN_CLIPS:-2000} TEST_CLIPS=${TEST_CLIPS:-100} # simulated, to train on and to generate from
TRAIN_SBATCH=${TRAIN_SBATCH:-}       # options of sbatch for training, as --nodes=2
GENERATE_SBATCH=${GENERATE_SBATCH:-} # and for generation
CPU_SBATCH=${CPU_SBATCH:-}           # and for the rest
GENERATE=${GENERATE:-}               # options of `newtonrewards generate`, as --num-frames 81 --guidance-scale 5
# Submits all jobs from clips to report, each of which waits for those that it needs; run it on the login node, from the
# root of the repository, with more options of `newtonrewards train` at the end:
#   MODEL=Wan2.2 RECIPE=my.yaml RUN=runs/mine TRAIN_SBATCH=--nodes=2 launch/slurm/chain.sh
# Clips that can't be made or scored stop nothing; the evaluation names them. If a job fails, those that need it are
# cancelled, and the same line again goes on. For your site set SBATCH_PARTITION and SBATCH_ACCOUNT.
set -eu
scripts=launch/slurm
[ -e $scripts/common.sh ] || { echo "Run it from the root of the repository." >&2; exit 2; }
for name in MODEL RECIPE; do
    [ -e "${!name}" ] || { echo "$name=${!name} doesn't exist. Set it: $name=... launch/slurm/chain.sh" >&2; exit 2; }
done
submitted=()
trap '[ "${#submitted[@]}" = 0 ] || scancel "${submitted[@]}"' EXIT # half a chain is none

submit() { # NAME AFTER ARGUMENTS of sbatch...: sets id
    local after=${2:+--dependency=afterok:$2}
    # shellcheck disable=SC2086  # none, where there is nothing to wait for
    id=$(sbatch --parsable --kill-on-invalid-dep=yes --job-name="$1" $after "${@:3}")
    id=${id%%;*}
    submitted+=("$id")
    echo "$id $1"
}

array() { # the same, in parts
    submit "$1" "$2" --array="0-$((TASKS - 1))" "${@:3}"
}

joined() { # the same, and a job that joins the parts: on a shared disk no part may know that it is the last
    array "$@"
    submit "$1_join" "$id" "${@:3}"
}

read -ra train_sbatch <<<"$TRAIN_SBATCH"
read -ra generate_sbatch <<<"$GENERATE_SBATCH"
read -ra cpu_sbatch <<<"$CPU_SBATCH"
read -ra generate <<<"$GENERATE"
export MODEL CLIPS OUT TRAINED VIDEOS TRUTH ARMS TRAINING PARTIAL

OUT=$RUN/data/train joined simulate_train "" "${cpu_sbatch[@]}" $scripts/simulate.sh --num-clips "$TRAIN_CLIPS"
train_clips=$id
OUT=$RUN/data/test joined simulate_test "" "${cpu_sbatch[@]}" $scripts/simulate.sh --num-clips "$TEST_CLIPS" \
    --split test
test_clips=$id
OUT=$RUN/train submit train "$train_clips" "${train_sbatch[@]}" $scripts/train.sh \
    --set "model.path=$MODEL" --set "data.clips=$RUN/data/train" "$@"
train=$id
CLIPS=$RUN/data/test
PARTIAL=1
TRAINED='' OUT=$RUN/before array before "$test_clips" "${generate_sbatch[@]}" $scripts/generate.sh "${generate[@]}"
before=$id
TRAINED=$RUN/train/model OUT=$RUN/after array after "$test_clips:$train" \
    "${generate_sbatch[@]}" $scripts/generate.sh "${generate[@]}"
after=$id
VIDEOS=$RUN/after OUT=$RUN/scores joined score "$before:$after" "${cpu_sbatch[@]}" $scripts/score.sh \
    --reference "$RUN/before"
TRUTH=$RUN/data/test ARMS="before=$RUN/before after=$RUN/after" TRAINING=$RUN/train OUT=$RUN/results PARTIAL=0 \
    submit evaluate "$before:$after" "${cpu_sbatch[@]}" $scripts/evaluate.sh
submitted=()
echo "squeue --me shows them; $RUN/results/report.html will be there when all are done."
