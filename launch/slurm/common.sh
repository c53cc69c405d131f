# shellcheck shell=bash
# What the jobs of this folder share; each sources it after its settings. ROOT, OUT and JOB stand for the repository,
# the folder that a job fills, and the job as SLURM's commands must name it.

PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
RETRIES=${RETRIES:-3} # ends in a row that brought nothing new, before a job is given up
# An array's task: the plain id of its last one is that of the whole array, and would stop or requeue all of it.
JOB=$SLURM_JOB_ID
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] && JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

say() { printf '%s %s: %s\n' "$(date +%FT%T)" "$SLURM_JOB_NAME $JOB" "$1" >&2; }

die() { # WORDS [CODE]
    say "$1"
    exit "${2:-2}"
}

needs() { # NAME...: settings that must name what exists
    local name
    for name in "$@"; do
        [ -n "${!name:-}" ] || die "$name isn't set. Set it in the script, or before sbatch: $name=... sbatch ..."
        [ -e "${!name}" ] || die "$name=${!name} doesn't exist. Paths count from $ROOT, or are absolute."
    done
}

prepare() { # before anything else: a queue isn't waited for twice because of a typing error
    cd "$ROOT" || die "can't enter ROOT=$ROOT"
    [ -x "$PYTHON" ] || die "no $PYTHON. Run ./newtonrewards --help once, where there is a network; or set PYTHON."
    { mkdir -p "$OUT" && : >"$OUT/.writable.$SLURM_JOB_ID" && rm "$OUT/.writable.$SLURM_JOB_ID"; } 2>/dev/null ||
        die "can't write to OUT=$OUT. Choose another one, change its rights, or free some space."
    say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, into $OUT"
}

find_shard() { # sets SHARD for a task of an array; one that is submitted again alone must know how many there were
    local count=${SHARDS:-${SLURM_ARRAY_TASK_COUNT:-1}} index=${SLURM_ARRAY_TASK_ID:-0}
    [ "$index" -lt "$count" ] ||
        die "task $index of $count doesn't exist. Arrays start at 0; for some of N tasks set SHARDS=N."
    # shellcheck disable=SC2034  # for those who source this
    SHARD=$index/$count
    PART=.$index-of-$count
}

ask_to_stop() { # $1: the signal that this shell got; some come twice, and torchrun doesn't bear a second one
    [ -z "$stopping" ] || return
    stopping=1
    say "got $1: the step shall save and end"
    scancel --signal=TERM "$JOB" # all processes of the steps; not this shell
}

stopping=
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM

step() { # ARGUMENTS of python, or `ranks` and those of torchrun: once on each node; sets code
    export PYTHON ROOT
    export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
    export TQDM_MININTERVAL=${TQDM_MININTERVAL:-30} # seconds: a log isn't a terminal
    code=143
    [ -z "$stopping" ] || return # before it began
    # srun doesn't take over --cpus-per-task since SLURM 22.05. One node lost is all lost: don't let the others wait.
    srun --mpi=none --kill-on-bad-exit=1 --nodes="$SLURM_NNODES" --ntasks-per-node=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$ROOT/launch/slurm/node.sh" "$@" &
    while kill -0 "$!" 2>/dev/null; do wait "$!"; done # a signal ends `wait`, not the step
    wait "$!" # its code is remembered
    code=$?
}

ranks() { # -m MODULE ARGUMENTS...: PROCESSES of it on each node, through torchrun unless it is one in all
    local first
    export PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
    local threads=$((${SLURM_CPUS_PER_TASK:-1} / PROCESSES)) # torchrun's own choice is 1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
    if [ $((PROCESSES * SLURM_NNODES)) = 1 ]; then
        step "$@"
        return
    fi
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # The address that SLURM itself uses: the name needn't mean anything to anyone else.
    MASTER_ADDR=$(scontrol show node --oneliner "$first" | grep -o ' NodeAddr=[^ ]*')
    export MASTER_ADDR=${MASTER_ADDR#*=}
    # Two jobs on one machine must not meet; below the ports that systems hand out by themselves (from 32768 on).
    export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    # Ranks that got TERM end their step and save; torchrun would kill them after 30 s.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-3600}
    [ -z "${IFNAME:-}" ] || export NCCL_SOCKET_IFNAME=$IFNAME GLOO_SOCKET_IFNAME=$IFNAME
    step ranks "$@"
}

newest() { # what the job has brought so far; a script that can say it better defines its own
    find "$OUT" -type f ! -name '*restarts*' 2>/dev/null | wc -l
}

finish() { # the job's end, by the code of its step
    case $code in
        0) say "done" && exit 0 ;;
        1) [ -z "${PARTIAL:-}" ] || die "some inputs failed, see above; the rest is there" $((PARTIAL == 1 ? 0 : 1)) ;;
        2) die "not tried again: see the error above" ;;
    esac
    requeue
}

requeue() {
    local log="$OUT/restarts${PART:-}.log" state ends reached
    trap '' USR1
    trap - TERM
    reached=$(newest)
    reached=${reached:-the start}
    state=$(squeue --noheader --job="$JOB" --format=%T)
    [ "$state" = RUNNING ] || die "ended with $code; the job is ${state:-gone} and isn't requeued" "$code"
    printf '%s job %s, start %s, ended with %s, at %s\n' \
        "$(date +%FT%T)" "$JOB" "${SLURM_RESTART_COUNT:-0}" "$code" "$reached" >>"$log"
    ends=$(tail -n "$RETRIES" "$log" | sed 's/.*, at //')
    if [ "$(wc -l <<<"$ends")" -ge "$RETRIES" ] && [ "$(sort -u <<<"$ends" | wc -l)" = 1 ]; then
        die "ended with $code. Given up: $RETRIES ends in a row brought nothing new, see $log" "$code"
    fi
    say "ended with $code${stopping:+ because it was asked to}; requeued, goes on from $reached"
    # Not by an exit code: RequeueExit is a setting of the site, and this isn't.
    scontrol requeue "$JOB" || die "SLURM doesn't requeue this job. Submit the same command again: it goes on" "$code"
    sleep 300 # SLURM ends this shell
}
